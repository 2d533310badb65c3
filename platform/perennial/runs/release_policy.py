"""Apply the run file's release policy. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from perennial.runs.events import Releasing
from perennial.runs.stage_planner import decide_release
from perennial.runs.state import RunState, Stage

if TYPE_CHECKING:
    from perennial.config import RunSpec

Checkpoints = Callable[[Stage], Sequence[int]]
"""The trunk steps at which a stage has checkpoints, in order."""


def due(spec: RunSpec, state: RunState, checkpoints: Checkpoints, now: str) -> list[Releasing]:
    """Plan the releases that are due and do not exist yet, the earliest step first.

    Only checkpoints of the last stage that passed its gates are released: a policy that is turned
    on late does not release the whole past. `every` takes the first checkpoint at or after each
    multiple of its tokens, counted from the trunk's first step.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        checkpoints: lists the trunk steps of a stage's checkpoints.
        now: UTC time, ISO 8601.
    """
    policy = spec.release.policy
    if policy == "on-demand":
        return []
    passed = (stage for stage in reversed(state.stages) if state.has_passed(stage))
    stage = next(passed, None)
    if stage is None:
        return []
    steps = [stage.last_step]
    if policy == "every":
        steps = _multiples(spec, stage, checkpoints(stage))
    elif policy == "schedule" and not _slot_is_open(spec, state, now):
        return []
    wanted = [decide_release(spec, state, stage, step, None, now) for step in steps]
    return [release for release in wanted if state.release_state(release.name) != "released"]


def _multiples(spec: RunSpec, stage: Stage, checkpoints: Sequence[int]) -> list[int]:
    assert spec.release.every is not None  # the run file's schema says so
    every = max(1, spec.release.every.steps(0, spec.tokens_per_step))
    first = stage.first_step // every * every + every
    chosen = []
    for multiple in range(first, stage.last_step + 1, every):
        after = [step for step in checkpoints if step >= multiple]
        chosen += after[:1]
    return list(dict.fromkeys(chosen))


def _slot_is_open(spec: RunSpec, state: RunState, now: str) -> bool:
    """Return whether no release was made since the last time of the timetable."""
    assert spec.release.schedule is not None
    if not state.releases:
        return True
    last = datetime.fromisoformat(state.releases[-1].at)
    return last < spec.release.schedule.last_due(datetime.fromisoformat(now))
