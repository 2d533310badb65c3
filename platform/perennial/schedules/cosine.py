"""The cosine schedule: every stage warms up to the peak again and decays again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

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
    check_rates,
    check_warmup_start,
    find_phase,
    warm_up_rate,
)
from perennial.schedules.curves import decay_rate
from perennial.schedules.validation import (
    check_number,
    check_order,
    check_step_from,
    check_steps,
    check_warmup,
)


@dataclass(frozen=True, slots=True)
class CosineSchedule(Schedule):
    """The paper's first recipe: one stage re-warms to `eta_max` and decays again to `eta_min`.

    `first_step` is the trunk step at which the stage starts; `steps` its length, warmup included.
    As in the paper, `eta_min` is reached at `first_step + steps`: the last step taken, one before
    it, is above `eta_min` by (eta_max - eta_min) / 2 * (1 - cos(pi / (steps - warmup_steps))).
    """

    kind: ClassVar[str] = "cosine"
    spans_trunk: ClassVar[bool] = False

    eta_max: float
    eta_min: float
    warmup_steps: int
    steps: int
    first_step: int = 0
    warmup_start: float = 0.0

    def __post_init__(self) -> None:
        check_number("eta_max", self.eta_max)
        check_number("eta_min", self.eta_min, zero_allowed=True)
        check_order(eta_min=self.eta_min, eta_max=self.eta_max)
        check_steps("warmup_steps", self.warmup_steps, 0)
        check_warmup(self.warmup_start, self.eta_max, self.warmup_steps)
        check_steps("steps", self.steps, 1)
        check_steps("first_step", self.first_step, 0)
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}; it must be below steps = {self.steps}"
            )

    def eta(self, step: int) -> float:
        """Return the rate of the optimizer step from `step` to `step + 1`."""
        check_step_from(step, self.first_step)
        t = step - self.first_step
        if t < self.warmup_steps:
            return warm_up_rate(self.eta_max, t, self.warmup_steps, self.warmup_start)
        x = (t - self.warmup_steps) / (self.steps - self.warmup_steps)
        return decay_rate("cosine", self.eta_max, self.eta_min, x)

    def phase(self, step: int) -> Phase:
        """Return "warmup" or "anneal"."""
        check_step_from(step, self.first_step)
        return find_phase(step, self.phase_ends(), "anneal")

    def phase_ends(self) -> dict[Phase, int]:
        """Return the last steps of the phases, in order."""
        ends: dict[Phase, int] = {}
        if self.warmup_steps:
            ends["warmup"] = self.first_step + self.warmup_steps
        ends["anneal"] = self.first_step + self.steps
        return ends


@SCHEDULES.register("cosine")
class CosineConfig(ScheduleConfig):
    """Warmup and cosine decay in every stage (arXiv 2403.08763, section 4).

    For corpora that are projects with a known budget each: the model is releasable at the end of a
    stage. Percentages are of every stage.
    """

    curve: ClassVar[type[Schedule]] = CosineSchedule
    rate_field: ClassVar[RateField | None] = "eta_max"

    kind: Literal["cosine"]
    """name of the schedule"""
    eta_max: Rate
    """peak learning rate of every stage, above 0 and at most 1"""
    eta_min: Rate
    """learning rate at the end of every stage, above 0"""
    warmup: Amount = Field(default_factory=lambda: parse_amount("1%"))
    """linear rise to eta_max, such as `1%` of every stage or `200 steps`"""
    warmup_start: Rate | None = None
    """learning rate at which the warmup begins, above 0: for a stored model whose rate was annealed
    its last one, often a tenth of its peak; default 0"""

    @model_validator(mode="after")
    def _check(self) -> CosineConfig:
        check_rates(self.eta_min, self.eta_max)
        check_percentages("a stage", warmup=self.warmup)
        check_warmup_start(self.warmup_start, self.eta_max)
        return self

    @property
    def anneal_end(self) -> float:
        """Return eta_min."""
        return self.eta_min

    def build(self, first_step: int, steps: int, tokens_per_step: int) -> CosineSchedule:
        """Return the curve of one stage."""
        warmup = self.warmup.steps(steps, tokens_per_step)
        check_fit("a stage", steps, warmup=warmup)
        return CosineSchedule(
            eta_max=self.eta_max,
            eta_min=self.eta_min,
            warmup_steps=warmup,
            steps=steps,
            first_step=first_step,
            warmup_start=self.warmup_start or 0.0,
        )
