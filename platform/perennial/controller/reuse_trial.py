"""A stage goes on from what a trial of it has trained, instead of training it again.

A trial is the beginning of the stage that `run` trains at its point (`perennial.search.trials`):
where plan, schedule, optimizer and start are the same, so is every weight.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from perennial.runs.search_state import Trial, trial_stage
from perennial.schedules import from_dict
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.spikes.skips import read_skips

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.runs.state import RunState, Stage
    from perennial.store import Store


def adopt(work: Workspace, stage: Stage) -> None:
    """Copy the furthest checkpoint of a trial of this very stage into it, unless it is further.

    A trial that left a batch out is not of this stage's plan any more.
    """
    stands = checkpoint.latest_step(work.store, stage.folder) or stage.first_step
    found = [
        (step, trial)
        for trial in beginnings(work.state, stage)
        if (step := checkpoint.latest_step(work.store, trial.folder) or 0) > stands
        and not read_skips(work.store, trial.folder)
    ]
    if not found:
        return
    step, trial = max(found, key=lambda pair: pair[0])
    _copy(work.store, checkpoint.folder_of(trial.folder, step), stage)
    work.log(
        f"{stage.name} goes on from step {step:,} of trial {trial.branched.trial}: "
        f"{step - stage.first_step:,} steps are not trained again"
    )


def beginnings(state: RunState, stage: Stage) -> list[Trial]:
    """The trials that are the beginning of this stage."""

    def told(each: Stage) -> tuple[Any, ...]:
        return each.start, each.first_step, each.mix, from_dict(each.schedule), each.optimizer

    return [
        trial
        for trial in state.searches.trials.values()
        if told(trial_stage(trial.branched, stage.after)) == told(stage)
    ]


def _copy(store: Store, source: str, stage: Stage) -> None:
    """The files under the same attempt, then a manifest in the stage's name (invariant I6)."""
    manifest = checkpoint.read_manifest(store, source)
    target = checkpoint.folder_of(stage.folder, manifest.step)
    for name in manifest.files:
        key = f"{checkpoint.place_of(target, manifest.attempt)}/{name}"
        with store.open(manifest.key_of(source, name)) as read, store.open(key, "wb") as written:
            shutil.copyfileobj(read, written)
    told = {"name": stage.name, "tracking_run": stage.tracking_run}
    checkpoint.commit(store, target, manifest.model_copy(update=told))
