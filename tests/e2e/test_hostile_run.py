"""`run` over a store that lost or holds a damaged object of each class: a line, or rightly on."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from perennial.errors import InputError
from perennial.runs.ledger import HEAD, Ledger
from perennial.store import Store, open_store
from tests.support.cli import perennial, start
from tests.support.tiny_run import tiny_run, write_run, write_texts

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

CLASSES = {
    "an early entry": r"ledger/0+3\.json",
    "the last entry": r"ledger/0+9\.json",
    "the head": re.escape(HEAD),
    "the manifest of the stage's end": r"checkpoints/00-help/0+12/manifest\.json",
    "its weights": r"checkpoints/00-help/0+12/.*/model.*\.safetensors",
    "its moments": r"checkpoints/00-help/0+12/.*/optimizer-00.*",
    "its metrics": r"checkpoints/00-help/0+12/.*/metrics\.jsonl",
    # Which of them there are depends on how busy the machine was; a phase's end always is.
    "an earlier checkpoint": r"checkpoints/00-help/0+(?!12/)\d+/manifest\.json",
    "a corpus's manifest": r"corpora/help/manifest\.json",
    "a shard": r"corpora/help/shard-0+\.parquet",
    "held-out documents": r"corpora/help/holdout-0+\.parquet",
    "digests of documents": r"corpora/help/digests-.*",
    "the tokenizer's manifest": r"tokenizer/manifest\.json",
    "the tokenizer": r"tokenizer/tokenizer\.json",
    "the marker of what comes next": r"inbox/code/_SUCCESS",
    "a file of what comes next": r"inbox/code/code\.jsonl",
}
WRITTEN_ANEW = re.compile(r"^(leases/|report/|mlflow/|starts/|failures/)")
"""what a run that goes on writes over"""


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, ray_head: dict[str, str]
) -> tuple[dict[str, bytes], tuple[object, ...]]:
    """The objects of a run with one trained stage and a corpus that waits, and its outcome."""
    folder = tmp_path_factory.mktemp("hostile")
    run_file = write_run(folder, _document(folder))
    texts = write_texts(folder)
    perennial("land", run_file, "help", texts["help"])
    perennial("run", run_file, env=ray_head)
    perennial("land", run_file, "code", texts["code"])
    store = open_store(folder / "store")
    objects = {info.key: store.read(info.key) for info in store.list()}
    perennial("run", run_file, env=ray_head)
    return objects, _outcome(store)


def _document(folder: Path) -> dict[str, object]:
    document = tiny_run(folder)
    document["training"] |= {"workers": 1, "micro_batch": 8}
    document["stages"] |= {"attempts": 1}
    document["release"]["sample_tokens"] = 0
    return document


def _outcome(store: Store) -> tuple[object, ...]:
    state = Ledger(store).read()
    stages = [(s.name, s.first_step, s.start, s.mix, s.schedule) for s in state.stages]
    return stages, state.losses, {name: corpus.state for name, corpus in state.corpora.items()}


def _outcome_or_none(store: Store) -> tuple[object, ...] | None:
    try:
        return _outcome(store)
    except InputError:
        return None


@pytest.mark.parametrize("damage", ["removed", "cut"])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_run_names_what_it_cannot_use_and_goes_on_once_it_is_back(
    trained: tuple[dict[str, bytes], tuple[object, ...]],
    tmp_path: Path,
    kind: str,
    damage: str,
    ray_head: dict[str, str],
) -> None:
    objects, outcome = trained
    run_file, store = write_run(tmp_path, _document(tmp_path)), open_store(tmp_path / "store")
    for name, data in objects.items():
        store.write(name, data)
    (key, *_) = [name for name in objects if re.fullmatch(CLASSES[kind], name)]
    store.remove(key)
    if damage == "cut":
        store.write(key, objects[key][: len(objects[key]) // 2])

    process = start("run", run_file, env=ray_head)
    _, err = process.communicate()
    assert process.returncode in (0, 1, 2), err
    assert "Traceback" not in err
    if process.returncode:
        assert err.rstrip().splitlines()[-1].startswith("perennial: ")
    for name, data in objects.items():
        if name != key and not WRITTEN_ANEW.match(name):
            # A run that goes on removes the checkpoints that it does not keep.
            is_there = store.exists(name) or (not process.returncode and "checkpoints/" in name)
            assert is_there, f"{name} is gone"
            assert not store.exists(name) or store.read(name) == data, f"{name} was overwritten"

    if _outcome_or_none(store) != outcome:
        store.write(key, objects[key])
        state = Ledger(store).read().corpora.get("code")
        if state is not None and state.state in ("failed", "refused"):
            assert "inbox/code" in state.reason or state.state == "failed", state.reason
            perennial("retry", run_file, "code")
        perennial("run", run_file, env=ray_head)
    assert _outcome(store) == outcome
    shutil.rmtree(tmp_path / "store")
