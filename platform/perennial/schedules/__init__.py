"""Learning-rate schedules as pure functions of (schedule, step), and the phases they pass through.

`schedule.eta(step)` is the rate of the optimizer step that takes the model from `step` to
`step + 1`, so a paper that starts at eta(0) = 0 takes its very first step at rate 0. Steps count
the trunk's optimizer steps from 0; nothing here holds state, so resuming is a function call.

Each schedule is one file: its section of the run file (a `ScheduleConfig`, registered in
`SCHEDULES`), its curve (a `Schedule`), and the documentation of both.
"""

from __future__ import annotations

from perennial.schedules.anneal import Anneal, AnnealSettings, release_anneal
from perennial.schedules.base import (
    SCHEDULES,
    Phase,
    RateField,
    Schedule,
    ScheduleConfig,
    build_curve,
)
from perennial.schedules.constant import ConstantConfig, ConstantSchedule
from perennial.schedules.cosine import CosineConfig, CosineSchedule
from perennial.schedules.curves import AnnealShape, CooldownShape
from perennial.schedules.infinite import InfiniteConfig, InfiniteSchedule
from perennial.schedules.serialization import (
    AbsentSchedule,
    AbsentScheduleConfig,
    differences,
    from_dict,
    to_dict,
)
from perennial.schedules.wsd import WarmupStableDecay, WarmupStableDecayConfig

__all__ = [
    "SCHEDULES",
    "AbsentSchedule",
    "AbsentScheduleConfig",
    "Anneal",
    "AnnealSettings",
    "AnnealShape",
    "ConstantConfig",
    "ConstantSchedule",
    "CooldownShape",
    "CosineConfig",
    "CosineSchedule",
    "InfiniteConfig",
    "InfiniteSchedule",
    "Phase",
    "RateField",
    "Schedule",
    "ScheduleConfig",
    "WarmupStableDecay",
    "WarmupStableDecayConfig",
    "build_curve",
    "differences",
    "from_dict",
    "release_anneal",
    "to_dict",
]
