"""Ingestion by itself: everything that landed, and nothing left of what was refused."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perennial import corpora
from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.controller.leases import Leases
from perennial.controller.loop import ingest_landed, todo_ingest
from perennial.controller.ray_cluster import describe_shortage
from perennial.errors import StaleDecision
from perennial.runs.ledger import Ledger
from perennial.store import Store
from tests.support.event_factory import event_of
from tests.support.refusal import refused
from tests.support.tiny_run import tiny_run

LINES = [
    json.dumps({"text": f"{n}: a document of some words about the number {n * n} and others"})
    for n in range(400)
]
DATA = "\n".join(LINES).encode()
OTHER_DATA = "\n".join(reversed(LINES)).replace("document", "piece of text").encode()
FOLDER_AND_LONG_S3 = ["local", pytest.param("s3", marks=pytest.mark.long)]
NOT_COMPARED = re.compile(r"^(ledger/|leases/|landed/|inbox/|refused/)")
"""what records that a corpus was refused, with its evidence, and the corpus itself"""


@pytest.fixture
def open_run(store_url: str, tmp_path: Path) -> Iterator[Callable[..., Workspace]]:
    """Opens the run with these corpora settings."""
    opened = []

    def open_with(**settings: object) -> Workspace:
        document = tiny_run(tmp_path, store_url)
        document["corpora"] |= {"sequence_length": 32, "holdout": 0.05} | settings
        opened.append(Workspace(RunSpec.model_validate(document), "run.yaml"))
        return opened[-1]

    yield open_with
    for work in opened:
        work.close()


def _land(work: Workspace, name: str, data: bytes, file: str = "a.jsonl") -> None:
    work.inbox.write(f"{name}/{file}", data)
    work.inbox.write(f"{name}/_SUCCESS", b"")


def _states(work: Workspace) -> dict[str, str]:
    return {name: corpus.state for name, corpus in work.ledger.read().corpora.items()}


def _objects(store: Store) -> set[str]:
    return {info.key for info in store.list() if not NOT_COMPARED.match(info.key)}


@pytest.mark.parametrize("store_url", FOLDER_AND_LONG_S3, indirect=True)
def test_one_ingest_tokenises_everything_that_landed_while_a_stage_trains(
    ray_local: None, open_run: Callable[..., Workspace]
) -> None:
    work = open_run()
    _land(work, "a", DATA)
    ingest_landed(work)
    training = Workspace(work.spec, "run.yaml")
    training.take_charge()
    training.record(event_of("started", training.ledger.read(), "a"))
    for name in ("b", "bad", "c"):
        _land(work, name, b"no JSON\n" * 400 if name == "bad" else OTHER_DATA)
    beside = open_run()
    beside.refresh()
    assert todo_ingest(beside) == ["ingest b", "ingest bad", "ingest c"]
    ingest_landed(beside)
    assert _states(work) == {"a": "training", "b": "ready", "bad": "refused", "c": "ready"}
    training.refresh()  # it is in charge still
    training.close()


REFUSALS: dict[str, tuple[bytes, str, dict[str, object]]] = {
    "too-much-bad": (DATA + b"\nno JSON" * 100, "a.jsonl", {}),
    "too-much-unreadable": (b"PAR1" + bytes(9000) + b"PAR1", "a.parquet", {}),
    "no-text": (DATA.replace(b'"text"', b'"body"'), "a.jsonl", {"max_bad_share": 1.0}),
    "corpus-too-small": (DATA[:700], "a.jsonl", {"max_bad_share": 1.0}),
    "corpus-too-small-by-rows": (
        "\n".join(LINES[:70]).encode(),
        "a.jsonl",
        {"sequence_length": 1024},
    ),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_first_corpus_that_is_refused_decides_nothing(
    ray_local: None, open_run: Callable[..., Workspace], reason: str
) -> None:
    data, file, settings = REFUSALS[reason]
    work = open_run(**settings)
    _land(work, "first", data, file)
    before = _objects(work.store)
    ingest_landed(work)
    assert _states(work) == {"first": "refused"}, work.state.corpora["first"].reason
    assert _objects(work.store) == before


@pytest.mark.parametrize("store_url", ["local"], indirect=True)
def test_no_corpus_is_refused_for_a_file_that_the_run_file_names(
    open_run: Callable[..., Workspace], tmp_path: Path
) -> None:
    work = open_run(decontaminate=[str(tmp_path / "questions.jsonl")])
    _land(work, "first", DATA)
    with refused("file-unreadable", "corpora.decontaminate"):
        ingest_landed(work)
    assert _states(work) == {"first": "landed"}


@pytest.mark.parametrize("store_url", FOLDER_AND_LONG_S3, indirect=True)
def test_the_tokenizer_is_of_the_first_corpus_that_was_accepted(
    ray_local: None, open_run: Callable[..., Workspace], tmp_path: Path
) -> None:
    work = open_run()
    _land(work, "bad", b'{"text": "\xd0\xb1"}\n' * 50 + b"no JSON\n" * 400)
    _land(work, "good", DATA)
    ingest_landed(work)
    assert _states(work) == {"bad": "refused", "good": "ready"}
    kept = corpora.load_tokenizer(work.store)
    alone = Workspace(
        work.spec.model_copy(update={"store": str(tmp_path / "alone"), "inbox": None}), "run.yaml"
    )
    _land(alone, "good", DATA)
    ingest_landed(alone)
    assert corpora.load_tokenizer(alone.store).fingerprint == kept.fingerprint
    alone.close()


def test_a_tokenizer_that_a_killed_ingest_left_is_made_again(
    ray_local: None, open_run: Callable[..., Workspace]
) -> None:
    work = open_run()
    _land(work, "other", OTHER_DATA * 2)
    settings = corpora.IngestSettings(sequence_length=32, seed=3)
    left = corpora.train_tokenizer(work.store, work.inbox, "other", 300, settings)
    work.inbox.remove("other")
    _land(work, "good", DATA)
    ingest_landed(work)
    assert corpora.load_tokenizer(work.store).fingerprint != left.fingerprint


def test_a_corpus_that_another_process_made_ready_is_not_waited_for(
    open_run: Callable[..., Workspace],
) -> None:
    """While that one tokenises the next corpus already."""
    work, other = open_run(), open_run()
    work.open_ledger()
    for name in ("a", "b"):
        work.record(event_of("landed", work.state, name))
    other.ledger.read()
    with other.ingesting("a"):
        other.record(event_of("ready", other.state, "a"))
    lines: list[str] = []
    leases = Leases(work.store, Ledger(work.store), lines.append, "run", insists=False)
    with (
        other.ingesting("b"),
        pytest.raises(StaleDecision),
        leases.ingesting("a", lambda state: None),
    ):
        pytest.fail("it began again")
    assert not lines


def test_a_cluster_without_a_free_cpu_is_named(ray_local: None) -> None:
    import ray

    assert not describe_shortage()
    group = ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    assert group.wait(60)
    deadline = time.monotonic() + 60  # what is free is reported by the nodes, a moment later
    while not describe_shortage() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "none is free" in describe_shortage()
    ray.util.remove_placement_group(group)
