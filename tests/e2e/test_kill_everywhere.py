"""I4: kill -9 of the real controller after every ledger write, and the ledger ends the same."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.training.checkpoint.manifest import read_manifest
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
    _kill(process)
    return True


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
        root = psutil.Process(process.pid)
        for each in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.communicate()


def _one_step_of_way(store: Store) -> int:
    """Events until a start has got on by one: its taking over, its claim of what was begun, one."""
    state = Ledger(store).read()
    return 2 + len(state.releasing) + (state.ingesting is not None)


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
    """The kinds of a corpus's events, without failures and claims of what another had begun."""
    kinds = [kind for kind in story if kind not in ("failed", "retried")]
    return [kind for kind, before in zip(kinds, ["", *kinds], strict=False) if kind != before]


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


@pytest.mark.timeout(3600)
def test_i4_killed_at_thirty_random_moments_the_ends_are_bitwise_those_of_an_undisturbed_run(
    tmp_path: Path,
) -> None:
    """In its first seconds, anywhere, and while it evaluates, exports and draws."""
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    began = time.monotonic()
    perennial("run", _prepared(undisturbed))
    whole_seconds = time.monotonic() - began
    run_file, store = _prepared(disturbed), open_store(disturbed / "store")
    dice = random.Random(7)
    early, anywhere = [3.0] * 10, [whole_seconds / 3] * 8
    for span in dice.sample([*early, *anywhere], len(early) + len(anywhere)):
        _kill_in(run_file, store, dice.uniform(0, span))
    for kind in ["evaluating", "evaluated", "releasing", "released"] * 3:
        _kill_in(run_file, store, dice.uniform(0, 2), behind=kind)
    perennial("run", run_file)
    for kept in (disturbed, undisturbed):
        perennial("report", kept / "run.yaml", "--output", kept / "report.html")
    assert _outcome(store) == _outcome(open_store(undisturbed / "store"))
    assert _weights(store) == _weights(open_store(undisturbed / "store"))
    perennial("verify", run_file)
    assert sorted(_mlflow_runs(store)) == sorted(_mlflow_runs(open_store(undisturbed / "store")))
    pictures = {info.key for info in store.list("report")}
    assert pictures >= {info.key for info in open_store(undisturbed / "store").list("report")}


@pytest.mark.timeout(3600)
def test_i4_report_and_release_killed_at_random_moments_end_as_undisturbed(tmp_path: Path) -> None:
    """A page is never half of one, and a release is the one that nobody killed."""
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    run_file = _prepared(undisturbed)
    document = yaml.safe_load(run_file.read_text())
    document["release"] |= {"policy": "on-demand", "sample_tokens": 8}
    perennial("run", write_run(undisturbed, document))
    shutil.copytree(undisturbed / "store", disturbed / "store")
    copied = write_run(disturbed, document | {"store": str(disturbed / "store")})
    seconds = {}
    for verb in ("release", "report"):
        began = time.monotonic()
        perennial(verb, run_file)
        seconds[verb] = time.monotonic() - began
    store, dice = open_store(disturbed / "store"), random.Random(11)
    for verb in ("report", "release") * 10:
        _kill_in(copied, store, dice.uniform(0, seconds[verb]), verb=verb)
        pages = [store.read(key) for key in ("report/report.html",) if store.exists(key)]
        assert all(page.rstrip().endswith(b"</html>") for page in pages)
    for verb in ("release", "report"):
        perennial(verb, copied)
    other = open_store(undisturbed / "store")
    assert _outcome(store) == _outcome(other)
    assert _weights(store) == _weights(other)
    assert sorted(_mlflow_runs(store)) == sorted(_mlflow_runs(other))
    assert store.read("report/matrix.json") == other.read("report/matrix.json")
    perennial("verify", copied)


def _kill_in(
    run_file: Path, store: Store, seconds: float, behind: str = "", verb: str = "run"
) -> None:
    """Start a verb and kill it after so long, from the last event of a kind on."""
    process = start(verb, run_file)
    while behind and process.poll() is None and _last_kind(store) != behind:
        time.sleep(0.02)  # polling a condition: the event
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)  # a random moment is meant, and no condition
    _kill(process)


def _last_kind(store: Store) -> str:
    keys = _events(store)
    return str(json.loads(store.read(keys[-1]))["kind"]) if keys else ""


def _weights(store: Store) -> dict[str, str]:
    """Digests of the weights and moments of every stage's end, and of every release."""
    state = Ledger(store).read()
    digests = {}
    for stage, end in state.ends.items():
        manifest = read_manifest(store, end)
        for name, file in manifest.files.items():
            if name.endswith(".safetensors"):
                digests[f"{stage}/{name}"] = file.sha256
    for release in state.releases:
        files = json.loads(store.read(f"{release.folder}/manifest.json"))["files"]
        digests |= {f"{release.name}/{n}": f["sha256"] for n, f in files.items() if "safe" in n}
    return digests


def _mlflow_runs(store: Store) -> list[str]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{store.url}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("perennial")
    assert experiment is not None
    return [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
