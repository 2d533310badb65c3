"""I4: kill -9 of the real controller after every ledger write, and the ledger ends the same."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from tests.support.cli import perennial, start
from tests.support.tiny_run import tiny_run, write_run, write_texts

pytestmark = pytest.mark.long


def _prepared(folder: Path) -> Path:
    document = tiny_run(folder)
    document["training"] |= {"workers": 1, "micro_batch": 8}
    # On a busy machine Ray may not start in time: that passes, and must not change the outcome.
    document["stages"] |= {"attempts": 9, "retry_after_seconds": 0}
    document["stages"] |= {"budget": "6 steps", "batch_arrivals": {}}
    document["release"] |= {"policy": "each-stage", "sample_tokens": 0}
    run_file = write_run(folder, document)
    for name, file in write_texts(folder).items():
        perennial("land", run_file, name, file)
    return run_file


def _events(store: Store) -> list[str]:
    return [info.key for info in store.list("ledger") if info.key.count("/") == 1]


def _kill_after(run_file: Path, store: Store, events: int) -> bool:
    """Start the controller and kill it and all it started once so many events are there."""
    process = start("run", run_file)
    while len(_events(store)) < events:
        if process.poll() is not None:
            process.communicate()
            return False
        time.sleep(0.005)  # polling a condition: the next event
    root = psutil.Process(process.pid)
    for each in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
            each.kill()
    process.communicate()
    return True


def _one_step_of_way(store: Store) -> int:
    """Events until a start has got on by one: its taking over, its claim of a release, one more."""
    return 2 + len(Ledger(store).read().releasing)


def _outcome(store: Store) -> tuple[object, ...]:
    """What must not depend on kills: all but times, controllers, claims, tries and run ids."""
    state = Ledger(store).read()
    state.validate()
    return (
        {name: (c.state, _without_tries(c.event_kinds)) for name, c in state.corpora.items()},
        [(s.name, s.first_step, s.start, s.mix, s.schedule) for s in state.stages],
        state.ends,
        state.losses,
        [(r.name, r.source, r.steps, r.losses) for r in state.releases],
    )


def _without_tries(story: list[str]) -> list[str]:
    return [kind for kind in story if kind not in ("failed", "retried")]


@pytest.mark.timeout(3600)
def test_i4_killed_after_every_ledger_write_the_run_ends_in_the_same_state(
    tmp_path: Path,
) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    perennial("run", _prepared(undisturbed))
    run_file, store = _prepared(disturbed), open_store(disturbed / "store")
    kills = 0
    while _kill_after(run_file, store, len(_events(store)) + _one_step_of_way(store)):
        kills += 1
    perennial("run", run_file)
    assert _outcome(store) == _outcome(open_store(undisturbed / "store"))
    matrices = [
        each.read("report/matrix.json") for each in (store, open_store(undisturbed / "store"))
    ]
    assert matrices[0] == matrices[1], "pictures that a kill prevented are made"
    state = Ledger(store).read()
    assert [stage.corpora for stage in state.stages] == [("help", "code")]
    releases = [f"release-{release.name}" for release in state.releases]
    first, second = (_without_tries(state.corpora[name].event_kinds) for name in ("help", "code"))
    own = second[: second.index("started")]  # the rest is the stage's
    events = len(first) + len(own) + len(["releasing", "released"])
    at_once = 3  # ready and ingesting, trained and evaluating; and the last event is the end
    assert kills >= events - at_once
    perennial("verify", run_file)
    runs = _mlflow_runs(store)
    assert sorted(runs) == sorted({"tiny", *(stage.name for stage in state.stages), *releases})


def _mlflow_runs(store: Store) -> list[str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{store.url}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("perennial")
    assert experiment is not None
    return [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
