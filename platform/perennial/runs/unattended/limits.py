"""Decide whether the run file's limits let another stage begin, by the ledger's times alone. Pure.

A limit keeps stages from beginning. What was begun is finished, so that a month may end above its
limit by the last stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from perennial.runs.trunk.training_times import time_trained

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.runs.state import RunState


@dataclass(frozen=True)
class LimitReached:
    """A limit that lets no stage begin.

    until: UTC time at which it does again, ISO 8601.
    """

    reason: str
    until: str


def reached_limit(spec: RunSpec, state: RunState, now: str) -> LimitReached | None:
    """Return the limit that keeps the next stage waiting, the one that lasts longest; or None.

    Args:
        spec: the run file.
        state: the run.
        now: UTC time, ISO 8601.
    """
    limits, moment = spec.limits, datetime.fromisoformat(now)
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    month = day.replace(day=1)
    reached = []
    if limits.stages_per_day is not None:
        begun = stages_since(state, day)
        if begun >= limits.stages_per_day:
            reason = f"{begun} of {limits.stages_per_day} stages of {day:%Y-%m-%d} have begun"
            reached.append(LimitReached(reason, (day + timedelta(days=1)).isoformat()))
    if limits.gpu_hours_per_month is not None:
        used = gpu_hours(state, month, moment)
        if used >= limits.gpu_hours_per_month:
            most = f"{limits.gpu_hours_per_month:g} GPU-hours of {month:%Y-%m}"
            after = (month + timedelta(days=32)).replace(day=1)
            reached.append(LimitReached(f"{used:,.2f} of {most} are used", after.isoformat()))
    return max(reached, key=lambda limit: limit.until, default=None)


def stages_since(state: RunState, since: datetime) -> int:
    """Return how many stages have begun since a time, those that left the trunk among them."""
    count = 0
    for times in reversed(state.training.values()):
        # Of older versions the times are not known.
        if not times or datetime.fromisoformat(times[0]) < since:
            break
        count += 1
    return count


def gpu_hours(state: RunState, since: datetime, now: datetime) -> float:
    """Return the GPU-hours in which stages were trained since a time.

    Args:
        state: the run; a stage that an older version began has no GPUs.
        since: UTC time.
        now: UTC time until which an unfinished stage is counted.
    """
    gpus = {stage.name: stage.gpus for stage in state.started_stages}
    used = 0.0
    for name, times in reversed(state.training.items()):
        used += gpus[name] * time_trained(times, since, now).total_seconds() / 3600
        if times and datetime.fromisoformat(times[0]) < since:
            break
    return used
