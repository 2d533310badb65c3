"""A search whose trial, node or driver is killed goes on, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import psutil
import pytest
import yaml

from perennial.runs.ledger import Ledger
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json, start
from tests.support.ray_nodes import Nodes, kill_tree, ray_nodes
from tests.support.tiny_run import write_run, write_texts
from tests.support.trained_run import STEPS, Lineage, document

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

Victim = Literal["trial", "node", "driver"]
BUDGET = 40
_RAYS_OWN = {"_AutoscalingCoordinatorActor", "_StatsActor"}
"""One of each serves the whole cluster, as long as it stands."""
_LEFT = """
import json, ray
from ray._private.state import actors
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
groups = [g["state"] for g in ray.util.placement_group_table().values()]
alive = [a["ActorClassName"] for a in actors().values() if a["State"] != "DEAD"]
print(json.dumps({"groups": [g for g in groups if g != "REMOVED"], "actors": alive}))
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_nodes(count=2) as nodes:
        yield nodes


@pytest.mark.parametrize("victim", get_args(Victim))
def test_a_killed_search_goes_on_and_leaks_no_group_or_actor(
    lineage: Lineage, nodes: Nodes, tmp_path: Path, victim: Victim
) -> None:
    shutil.copytree(lineage.after_first, tmp_path / "store")
    run = document(tmp_path)
    run["training"] |= {"workers": 1, "micro_batch": 8}
    run_file = write_run(tmp_path, run)
    perennial("land", run_file, "code", write_texts(tmp_path)["code"])
    tuning_file = tmp_path / "tuning.yaml"
    tuning_file.write_text(
        yaml.safe_dump(
            {
                "name": "small",
                "run": str(run_file),
                "budget": f"{BUDGET} steps",
                "eta_const": [1e-3],
                "replay": [0.0, 0.5],
            }
        )
    )
    store = open_store(tmp_path / "store")

    def second_is_under_way() -> bool:
        trials = Ledger(store).read().searches.trials.values()
        tried = [trial for trial in trials if trial.tried]
        begun = [trial for trial in trials if not trial.tried]
        return len(tried) == 1 and any(
            checkpoint.latest_step(store, trial.folder) for trial in begun
        )

    process = start("tune", tuning_file, "--json", env=nodes.environment)
    _until(second_is_under_way, process)
    finished = next(t for t in Ledger(store).read().searches.trials.values() if t.tried)
    before = finished.tried
    _kill(victim, nodes, process)
    if victim == "node":
        nodes.add()
    out, err = process.communicate()
    if victim == "driver":
        found = perennial_json("tune", tuning_file, env=nodes.environment)
    else:
        assert process.returncode == 0, err[-4000:]
        found = json.loads(out)

    assert [trial["steps"] for trial in found["trials"]] == [BUDGET, BUDGET]
    state = Ledger(store).read()
    assert state.searches.trials[finished.branched.trial].tried == before
    for trial in state.searches.trials.values():
        assert [tried.step for tried in trial.tried] == [STEPS + BUDGET]
        end = checkpoint.read_manifest(store, trial.tried[0].checkpoint)
        assert (end.step, end.optimizer_steps) == (STEPS + BUDGET, BUDGET)
    perennial("verify", run_file)
    _until(lambda: not _left(nodes), None)


def _until(holds: Callable[[], bool], process: subprocess.Popen[str] | None) -> None:
    """Wait for a condition; fail with what the process said when it ends before."""
    end = time.monotonic() + 240
    while not holds():
        if process is not None and process.poll() is not None:
            pytest.fail(f"the search ended early: {process.communicate()[1][-4000:]}")
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.2)  # polling a condition


def _kill(victim: Victim, nodes: Nodes, driver: subprocess.Popen[str]) -> None:
    match victim:
        case "driver":
            kill_tree(psutil.Process(driver.pid))
        case "node":
            nodes.kill(next(i for i in range(len(nodes)) if nodes.workers(i)))
        case "trial":
            trials = [p for i in range(len(nodes)) for p in nodes.processes(i, "ray::ImplicitFunc")]
            assert trials
            for process in trials:
                process.kill()


def _left(nodes: Nodes) -> list[str]:
    """Placement groups and actors that the cluster still has, but for Ray's own."""
    done = subprocess.run(
        [sys.executable, "-c", _LEFT],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **nodes.environment},
    )
    left: dict[str, list[str]] = json.loads(done.stdout.strip().splitlines()[-1])
    own = [name for name in left["actors"] if name in _RAYS_OWN]
    assert len(own) == len(set(own))
    return [*left["groups"], *(name for name in left["actors"] if name not in _RAYS_OWN)]
