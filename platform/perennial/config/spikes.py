"""The section `training.spikes` of the run file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from perennial.fields import FREE, Section


class SpikesSpec(Section):
    """Detection of loss spikes, and the reaction to one."""

    policy: Annotated[Literal["stop", "rollback-and-skip", "ignore"], FREE] = "stop"
    """stop (the trunk stays at its last checkpoint), rollback-and-skip (return to that checkpoint
    and leave the batch out) or ignore (log the spike and continue). A loss or a gradient that is
    not finite cannot be ignored, and stops"""
    threshold: Annotated[float, Field(gt=0, allow_inf_nan=False), FREE] = 8.0
    """a loss is a spike from this many deviations above the median of the steps before it, above 0;
    a deviation is 1.4826 median absolute deviations, at least 1% of the median"""
    window: Annotated[int, Field(ge=4), FREE] = 100
    """number of preceding steps that a loss is compared with, at least 4"""
    max_skips: Annotated[int, Field(ge=1), FREE] = 5
    """most batches that one stage or release may leave out before it stops, at least 1"""
