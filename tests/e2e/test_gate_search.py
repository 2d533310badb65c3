"""A broken gate starts a search on real text; it is killed, goes on, and its best trial passes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from perennial.config.search import Point
from perennial.runs import events
from perennial.runs.event_codec import decode
from perennial.runs.ledger import Ledger
from perennial.runs.search_state import Trial
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json, start
from tests.support.ray_nodes import kill_tree
from tests.support.tiny_run import tiny_run, write_run, write_texts

STEPS = 60


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_search_after_a_broken_gate_is_killed_goes_on_and_its_best_trial_is_the_stage(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    document = tiny_run(tmp_path)
    document["training"] |= {"workers": 1, "micro_batch": 8}
    document["stages"] = {"budget": f"{STEPS} steps"}
    document["gates"] = {"max_forgetting": -9, "max_trials": 2}
    run_file, store = write_run(tmp_path, document), open_store(tmp_path / "store")
    for name, path in write_texts(tmp_path).items():
        perennial("land", run_file, name, path)
    perennial("run", run_file, env=ray_head, code=1)
    stopped = Ledger(store).read()
    (forgot,) = [verdict for verdict in stopped.verdicts["01-code"] if not verdict.holds]
    assert forgot.value is not None

    # Below what the run file's own share forgets, and above what a larger one does.
    document["gates"] |= {"max_forgetting": forgot.value - 0.005, "on_broken": "search"}
    write_run(tmp_path, document)
    plan = " ".join(perennial("plan", run_file).split())
    assert "a trial with 50% replay: trial 1 of at most 2" in plan
    assert perennial_json("status", run_file)["next"] == ["search code"]
    process = start("run", run_file, env=ray_head)
    killed = _second_under_way(store, process)
    kill_tree(psutil.Process(process.pid))
    process.communicate()
    done = perennial_json("run", run_file, env=ray_head)

    assert (done["trained"], done["gated"]) == (1, None)
    state = Ledger(store).read()
    trials = list(state.searches.trials.values())
    assert [_point(trial).replay for trial in trials] == [0.5, 0.38]
    assert trials[1].branched.trial == killed, "the search goes on where it was"
    holding = [trial for trial in trials if all(v.holds for v in trial.tried[0].verdicts)]
    assert holding, [trial.tried[0].verdicts for trial in trials]
    best = min(holding, key=lambda trial: trial.tried[0].values["adaptation"])
    stage = state.stages[-1]
    assert [left.name for left in state.abandoned] == ["01-code"]
    assert (stage.name, stage.mix.replay.share) == ("02-code", _point(best).replay)
    (verdict,) = state.verdicts[stage.name]
    assert verdict == best.tried[0].verdicts[0]
    assert state.losses[stage.name] == best.tried[0].losses
    # What the trial trained is the stage: nothing was trained again.
    ends = [best.tried[0].checkpoint, state.ends[stage.name]]
    assert len({_weights(store, end) for end in ends}) == 1
    for trial in trials:
        end = checkpoint.read_manifest(store, trial.tried[0].checkpoint)
        assert (end.step, end.optimizer_steps) == (2 * STEPS, STEPS)
    _check_events(store)
    assert perennial_json("verify", run_file)["holds"]


def _point(trial: Trial) -> Point:
    assert isinstance(trial.branched.point, Point)
    return trial.branched.point


def _weights(store: Store, folder: str) -> tuple[str, ...]:
    files = checkpoint.read_manifest(store, folder).files
    return tuple(sorted(file.sha256 for name, file in files.items() if "metrics" not in name))


def _second_under_way(store: Store, process: Any) -> str:
    """Wait until the second trial has a checkpoint before its end; its name."""
    end = time.monotonic() + 900
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        begun = [t for t in Ledger(store).read().searches.trials.values() if not t.tried]
        for trial in begun:
            step = checkpoint.latest_step(store, trial.folder)
            if step and trial.branched.point != Point(1.65e-3, 0.5, "seen"):
                assert step < 2 * STEPS
                return trial.branched.trial
        time.sleep(0.1)  # polling a condition
    raise AssertionError("there was no second trial")


def _check_events(store: Store) -> None:
    """The decisions are in the ledger, with their reasons."""
    ledger = Ledger(store)
    ledger.read()
    told = [decode(store.read(ledger.key(number))).event for number in range(ledger.next)]
    (begun,) = [event for event in told if isinstance(event, events.Searching)]
    assert str(begun.spec["reason"]).startswith("max_forgetting of help is +")
    (retried,) = [event for event in told if isinstance(event, events.Retried)]
    assert retried.search == "gate/01-code"
    assert "the best of 2 trials" in retried.reason
