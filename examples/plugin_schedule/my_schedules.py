"""A learning-rate schedule from another package: warmup, then eta_max sqrt(warmup / step).

Install it with `pip install -e examples/plugin_schedule`; from then on a run file may say

    schedule: {kind: inverse-sqrt, eta_max: 3.0e-3, eta_min: 3.0e-4, rise: 100}
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal

from perennial.fields import Count, Rate
from perennial.schedules.base import Phase, Schedule, ScheduleConfig, check_rates


@dataclass(frozen=True, slots=True)
class InverseSqrtSchedule(Schedule):
    """The curve, over the whole trunk: it needs no length in advance."""

    kind: ClassVar[str] = "inverse-sqrt"
    spans_trunk: ClassVar[bool] = True

    eta_max: float
    eta_min: float
    warmup_steps: int

    def eta(self, step: int) -> float:
        """Return the rate of the optimizer step from `step` to `step + 1`."""
        if step < self.warmup_steps:
            return self.eta_max * step / self.warmup_steps
        return max(self.eta_min, self.eta_max * sqrt(self.warmup_steps / step))

    def phase(self, step: int) -> Phase:
        """Return "warmup" up to its last step, then "cooldown"."""
        return "warmup" if step <= self.warmup_steps else "cooldown"

    def phase_ends(self) -> dict[Phase, int]:
        """Return the end of the warmup; the cooldown has none."""
        return {"warmup": self.warmup_steps}


class InverseSqrtConfig(ScheduleConfig):
    """Warmup, then a decay with the inverse square root of the step."""

    curve: ClassVar[type[Schedule]] = InverseSqrtSchedule

    kind: Literal["inverse-sqrt"]
    """name of the schedule"""
    eta_max: Rate
    """rate at the end of the warmup"""
    eta_min: Rate
    """lowest rate of the curve, and the rate at which the anneal of a release ends"""
    rise: Count
    """optimizer steps of the warmup"""

    @property
    def anneal_end(self) -> float:
        """Return eta_min."""
        return self.eta_min

    def build(self, first_step: int, steps: int, tokens_per_step: int) -> InverseSqrtSchedule:
        """Return the trunk's curve, whatever the length of its first stage."""
        check_rates(self.eta_min, self.eta_max)
        return InverseSqrtSchedule(self.eta_max, self.eta_min, self.rise)
