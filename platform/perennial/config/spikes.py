"""What happens when a step's loss leaps, as a run file says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from perennial.fields import Section


class SpikesSpec(Section):
    """What happens when a step's loss leaps."""

    policy: Literal["stop", "rollback-and-skip", "ignore"] = "stop"
    """stop (the trunk stays at its last checkpoint), rollback-and-skip (go back to that checkpoint
    and leave the batch out) or ignore (go on, and say it); a loss or a gradient that is not finite
    cannot be ignored and stops"""
    threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 8.0
    """deviations above the median of the steps before it from which on a loss is a spike, above 0;
    a deviation is 1.4826 median absolute deviations, at least 1% of the median"""
    window: Annotated[int, Field(ge=4)] = 100
    """steps that a loss is compared with, at least 4"""
    max_skips: Annotated[int, Field(ge=1)] = 5
    """batches that one stage or release may leave out before it stops, at least 1"""
