"""The constant schedule: warmup, then one rate without an end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from perennial.fields import Amount, Rate, parse_amount
from perennial.schedules.base import (
    SCHEDULES,
    Phase,
    RateField,
    Schedule,
    ScheduleConfig,
    check_fit,
    check_percentages,
    check_steps_before,
    check_warmup_start,
    find_phase,
    shift_ends,
    warm_up_rate,
)
from perennial.schedules.validation import check_number, check_step_from, check_steps, check_warmup


@dataclass(frozen=True, slots=True)
class ConstantSchedule(Schedule):
    """A rate for the whole trunk: warmup, then constant at `eta_const`.

    `steps_before` steps of it were taken in another run, before this trunk's step 0.
    """

    kind: ClassVar[str] = "constant"
    spans_trunk: ClassVar[bool] = True

    eta_const: float
    warmup_steps: int = 0
    warmup_start: float = 0.0
    steps_before: int = 0

    def __post_init__(self) -> None:
        check_number("eta_const", self.eta_const)
        check_steps("warmup_steps", self.warmup_steps, 0)
        check_warmup(self.warmup_start, self.eta_const, self.warmup_steps)
        check_steps("steps_before", self.steps_before, 0)

    def eta(self, step: int) -> float:
        """Return the rate of the optimizer step from `step` to `step + 1`."""
        check_step_from(step, 0)
        step += self.steps_before
        if step < self.warmup_steps:
            return warm_up_rate(self.eta_const, step, self.warmup_steps, self.warmup_start)
        return self.eta_const

    def phase(self, step: int) -> Phase:
        """Return "warmup" or "constant"."""
        check_step_from(step, 0)
        return find_phase(step, self.phase_ends(), "constant")

    def phase_ends(self) -> dict[Phase, int]:
        """Return the last step of the warmup, if there is one."""
        ends: dict[Phase, int] = {"warmup": self.warmup_steps} if self.warmup_steps else {}
        return shift_ends(ends, self.steps_before)


@SCHEDULES.register("constant")
class ConstantConfig(ScheduleConfig):
    """Warmup once, then a constant rate: for a search or a baseline with nothing else moving.

    Releases anneal on a branch, as with the infinite schedule. Percentages are of the first stage.
    """

    curve: ClassVar[type[Schedule]] = ConstantSchedule
    rate_field: ClassVar[RateField | None] = "eta_const"

    kind: Literal["constant"]
    """name of the schedule"""
    eta_const: Rate
    """learning rate after the warmup, above 0 and at most 1"""
    eta_min: Rate | None = None
    """rate at which the anneal of a release ends, above 0 and at most eta_const; default a tenth of
    eta_const"""
    warmup: Amount = Field(default_factory=lambda: parse_amount("1%"))
    """linear rise to eta_const, such as `1%` of the first stage or `200 steps`"""
    warmup_start: Rate | None = None
    """learning rate at which the warmup begins, above 0: for a stored model whose rate was annealed
    its last one, often a tenth of its peak; default 0"""
    steps_before: Annotated[int, Field(ge=0)] = 0
    """steps of this schedule that the model of `model.path` has behind it: the first stage goes on
    from there. The run file in a trunk kit has it; default 0"""

    @model_validator(mode="after")
    def _check(self) -> ConstantConfig:
        if self.anneal_end > self.eta_const:
            raise ValueError(
                f"eta_min {self.anneal_end:g} is above eta_const {self.eta_const:g}; "
                "use eta_min <= eta_const"
            )
        check_percentages("the first stage", warmup=self.warmup)
        check_steps_before(self.steps_before, warmup=self.warmup)
        check_warmup_start(self.warmup_start, self.eta_const)
        return self

    @property
    def anneal_end(self) -> float:
        """Return eta_min, or a tenth of eta_const."""
        return self.eta_const / 10 if self.eta_min is None else self.eta_min

    def build(self, first_step: int, steps: int, tokens_per_step: int) -> ConstantSchedule:
        """Return the trunk's curve from the length of its first stage."""
        warmup = self.warmup.steps(steps, tokens_per_step)
        check_fit("a first stage", self.steps_before + steps, warmup=warmup)
        return ConstantSchedule(self.eta_const, warmup, self.warmup_start or 0.0, self.steps_before)

    def pinned(self, trunk: Schedule) -> Self:
        """Return the section with the warmup in the steps of `trunk`."""
        if not isinstance(trunk, ConstantSchedule):
            return self
        return self.model_copy(update={"warmup": parse_amount(f"{trunk.warmup_steps} steps")})

    def continued(self, trunk: Schedule, step: int) -> Self:
        """Return the section with the phases in steps, of which those up to `step` are behind."""
        if not isinstance(trunk, ConstantSchedule):
            return self
        its = {"eta_const": trunk.eta_const, "warmup_start": trunk.warmup_start or None}
        before = {"steps_before": trunk.steps_before + step}
        return self.pinned(trunk).model_copy(update=its | before)

    @classmethod
    def read_stored(cls, record: Mapping[str, Any]) -> Self:
        """Return the section that a run stored.

        Until version 0.1 eta_const could be left out and was the midpoint of eta_max and eta_min.
        """
        if record.get("eta_const") is None and "eta_max" in record:
            record = {**record, "eta_const": (record["eta_max"] + record["eta_min"]) / 2}
        return super().read_stored(record)
