"""Learning-rate schedules as pure functions of (schedule, step), and the phases they pass through.

`schedule.eta(step)` is the rate of the optimizer step that takes the model from `step` to
`step + 1`, so a paper that starts at eta(0) = 0 takes its very first step at rate 0. Steps count
the trunk's optimizer steps from 0; nothing here holds state, so resuming is a function call.
"""

from __future__ import annotations

from perennial.schedules.curves import AnnealShape, CooldownShape
from perennial.schedules.kinds import (
    Anneal,
    ConstantSchedule,
    CosineSchedule,
    InfiniteSchedule,
    Phase,
    Schedule,
    WarmupStableDecay,
)
from perennial.schedules.serialization import differences, from_dict, to_dict

__all__ = [
    "Anneal",
    "AnnealShape",
    "ConstantSchedule",
    "CooldownShape",
    "CosineSchedule",
    "InfiniteSchedule",
    "Phase",
    "Schedule",
    "WarmupStableDecay",
    "differences",
    "from_dict",
    "to_dict",
]
