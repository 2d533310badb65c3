"""A finished run, for tests of what its store proves and what befalls it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perennial.evaluation.kept_samples import Held
from perennial.runs.event_codec import decode
from perennial.runs.events import Evaluated
from perennial.runs.ledger import FOLDER, HEAD, Ledger
from perennial.store import Log, Store, open_store
from tests.support.synthetic_run import craft_run


@pytest.fixture(scope="session")
def landed_and_finished(
    ray_local: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Every object of a finished run, its inbox included."""
    store = craft_run(tmp_path_factory.mktemp("run"))
    return {info.key: store.read(info.key) for info in store.list()}


@pytest.fixture(scope="session")
def finished(landed_and_finished: dict[str, bytes]) -> dict[str, bytes]:
    """Every object of a finished run whose inbox was cleared."""
    return {key: data for key, data in landed_and_finished.items() if "inbox" not in key}


def filled(store: Store, objects: dict[str, bytes]) -> Store:
    """The store, with these objects."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.write, objects.keys(), objects.values()))
    return store


def with_samples(store: Store, corpus: str, held: Held) -> Store:
    """The run, written again with samples from the stage of a corpus."""
    story = [decode(data).event for _, data in Log(store, FOLDER).tail(0)]
    store.remove(FOLDER)
    store.remove(HEAD)
    ledger = Ledger(store)
    for event in story:
        is_its = isinstance(event, Evaluated) and event.corpus == corpus
        ledger.append(event.model_copy(update={"samples": held}) if is_its else event)
    return store


@pytest.fixture
def store(finished: dict[str, bytes], audited_store_url: str) -> Store:
    """A finished run in a store of each kind."""
    return filled(open_store(audited_store_url), finished)


@pytest.fixture
def local(finished: dict[str, bytes], tmp_path: Path) -> Store:
    """A finished run in a local folder."""
    return filled(open_store(tmp_path / "store"), finished)
