"""Bringing MLflow up to what the store knows: after an outage, or into an empty database.

Every value is in the store before it is in MLflow. What MLflow has already is not written twice,
so all of this may be repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.stages import outcome, release
from perennial.stages.training import stored_rows

if TYPE_CHECKING:
    from perennial.stages.machine import Stage
    from perennial.stages.workspace import Workspace


def catch_up(work: Workspace) -> list[str]:
    """Log every trained stage, release and the lineage's matrix again; the stages' names."""
    # A stage that trains is caught up by the controller that trains it.
    stages = [stage for stage in work.state.stages if stage.name in work.state.ends]
    for stage in stages:
        _stage(work, stage)
    tokens_per_step = work.spec.tokens_per_step
    for released in work.state.releases:
        branch = stored_rows(work.store, f"branches/{released.name}", tokens_per_step)
        work.tracker.child(f"release-{released.name}").log_rows(branch, tokens_per_step)
        release.track(work, work.state.branches[released.name], released)
    if work.state.losses:
        outcome.track(work)
    return [stage.name for stage in stages]


def _stage(work: Workspace, stage: Stage) -> None:
    run = work.tracker.child(
        stage.name, stage.tracking_run, params=outcome.parameters(work.spec, stage)
    )
    tokens_per_step = work.spec.tokens_per_step
    rows = list(stored_rows(work.store, stage.folder, tokens_per_step))
    run.log_rows(rows, tokens_per_step)
    if stage.name in work.state.losses:
        outcome.track_stage(work, stage)
        run.finish(at_ms=rows[-1][1] if rows else None)
