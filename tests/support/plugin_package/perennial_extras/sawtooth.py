"""A learning-rate schedule of equal teeth: each falls linearly from eta_max to eta_min."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from perennial.fields import Count, Rate
from perennial.schedules.base import Phase, Schedule, ScheduleConfig, check_rates


@dataclass(frozen=True, slots=True)
class SawtoothSchedule(Schedule):
    """The curve: `tooth_steps` steps down, then up again at once, without an end."""

    kind: ClassVar[str] = "sawtooth"
    spans_trunk: ClassVar[bool] = True

    eta_max: float
    eta_min: float
    tooth_steps: int

    def eta(self, step: int) -> float:
        """Return the rate of the optimizer step from `step` to `step + 1`."""
        part = step % self.tooth_steps / self.tooth_steps
        return self.eta_max - (self.eta_max - self.eta_min) * part

    def phase(self, step: int) -> Phase:
        """Return "constant": a tooth is no phase that ends."""
        return "constant"

    def phase_ends(self) -> dict[Phase, int]:
        """Return no end of a phase."""
        return {}


class SawtoothConfig(ScheduleConfig):
    """Teeth of equal length, for the whole trunk."""

    curve: ClassVar[type[Schedule]] = SawtoothSchedule

    kind: Literal["sawtooth"]
    """name of the schedule"""
    eta_max: Rate
    """rate at the beginning of each tooth"""
    eta_min: Rate
    """rate that a tooth falls to, and at which the anneal of a release ends"""
    tooth_steps: Count
    """optimizer steps of a tooth"""

    @property
    def anneal_end(self) -> float:
        """Return eta_min."""
        return self.eta_min

    def build(self, first_step: int, steps: int, tokens_per_step: int) -> SawtoothSchedule:
        """Return the trunk's curve, whatever the length of its first stage."""
        check_rates(self.eta_min, self.eta_max)
        return SawtoothSchedule(self.eta_max, self.eta_min, self.tooth_steps)
