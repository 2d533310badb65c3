"""Continue a stage from a checkpoint of the same plan: of a trial, or from before a rewind.

A trial is the beginning of the stage that `run` trains at its point (`perennial.search.trials`):
where plan, schedule, optimizer and start are the same, so is every weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perennial.runs.search_state import Trial, trial_stage
from perennial.schedules import from_dict
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.checkpoint.same_plan import check_same_plan
from perennial.training.spikes.skips import read_skips, record_skip

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.runs.state import RunState, Stage
    from perennial.store import Store


def adopt(work: Workspace, stage: Stage) -> None:
    """Copy the furthest checkpoint of this stage's plan into it, unless it is further itself.

    A trial that skipped a batch no longer follows the stage's plan, and is left out. So is every
    trial of a plan with a corpus of which something was erased: it may have been trained on that.

    Args:
        work: the run, of which this process is in charge.
        stage: the stage that is about to train.

    Raises:
        InputError: the checkpoint from which it is to go on is of another plan.
        Damaged, Altered: that checkpoint is damaged.
    """
    if stage.resumes is not None:
        _resume(work, stage, stage.resumes)
    if any(work.state.corpora[source.corpus].erasures for source in stage.mix.sources):
        return
    stands = checkpoint.latest_step(work.store, stage.folder) or stage.first_step
    further = [
        (step, trial)
        for trial in beginnings(work.state, stage)
        if (step := checkpoint.latest_step(work.store, trial.folder) or 0) > stands
        and not read_skips(work.store, trial.folder)
    ]
    if not further:
        return
    step, trial = max(further, key=lambda pair: pair[0])
    _copy(work.store, checkpoint.folder_of(trial.folder, step), stage)
    work.log(
        f"{stage.name} continues from step {step:,} of trial {trial.branched.trial}: "
        f"{step - stage.first_step:,} steps are not trained again"
    )


def _resume(work: Workspace, stage: Stage, source: str) -> None:
    """Copy the checkpoint to which the trunk was taken back, with the batches left out so far."""
    if checkpoint.latest_step(work.store, stage.folder) is not None:
        return
    step = checkpoint.read_manifest(work.store, source).step
    for skip in read_skips(work.store, source.rpartition("/")[0]):
        if skip.step <= step:
            record_skip(work.store, stage.folder, skip)
    _copy(work.store, source, stage)
    work.log(f"{stage.name} goes on from {source}")


def beginnings(state: RunState, stage: Stage) -> list[Trial]:
    """Return the trials that are the beginning of a stage."""

    def plan_of(stage: Stage) -> tuple[Any, ...]:
        schedule = from_dict(stage.schedule)
        return stage.start, stage.first_step, stage.mix, schedule, stage.optimizer

    return [
        trial
        for trial in state.searches.trials.values()
        if plan_of(trial_stage(trial.branched, stage.after)) == plan_of(stage)
        and (trial.branched.settings or stage.settings) == stage.settings
    ]


def _copy(store: Store, source: str, stage: Stage) -> None:
    """Copy the files of the attempt, then commit a manifest for the stage (invariant I6).

    Raises Altered when the trial's manifest has another digest of a file.
    """
    manifest = checkpoint.read_manifest(store, source)
    check_same_plan(source, manifest, stage.mix, from_dict(stage.schedule))
    owner = {"name": stage.name, "tracking_run": stage.tracking_run}
    checkpoint.copy_checkpoint(store, source, manifest, stage.folder, owner)
