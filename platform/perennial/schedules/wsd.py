"""The warmup-stable-decay schedule: a constant rate that falls at the end of every stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

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
from perennial.schedules.curves import AnnealShape, decay_rate
from perennial.schedules.validation import (
    check_choice,
    check_number,
    check_order,
    check_step_from,
    check_steps,
    check_warmup,
)


@dataclass(frozen=True, slots=True)
class WarmupStableDecay(Schedule):
    """Warmup, constant at `eta_max`, and an anneal over the last `decay_steps` of `steps`.

    The anneal begins at `first_step + steps - decay_steps`, still at `eta_max`, and takes the last
    step, `first_step + steps - 1`, at exactly `eta_min`, as an `Anneal` does.
    """

    kind: ClassVar[str] = "wsd"
    spans_trunk: ClassVar[bool] = False

    eta_max: float
    eta_min: float
    warmup_steps: int
    steps: int
    decay_steps: int
    decay_shape: AnnealShape
    first_step: int = 0
    warmup_start: float = 0.0

    def __post_init__(self) -> None:
        check_choice("decay_shape", self.decay_shape, get_args(AnnealShape))
        check_number("eta_max", self.eta_max)
        check_number("eta_min", self.eta_min, zero_allowed=self.decay_shape != "exponential")
        check_order(eta_min=self.eta_min, eta_max=self.eta_max)
        check_steps("warmup_steps", self.warmup_steps, 0)
        check_warmup(self.warmup_start, self.eta_max, self.warmup_steps)
        check_steps("decay_steps", self.decay_steps, 2)  # one at eta_max and one at eta_min
        check_steps("steps", self.steps, 2)
        check_steps("first_step", self.first_step, 0)
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"steps is {self.steps}; it must be warmup_steps + decay_steps = "
                f"{self.warmup_steps + self.decay_steps} or more"
            )

    def eta(self, step: int) -> float:
        """Return the rate of the optimizer step from `step` to `step + 1`."""
        check_step_from(step, self.first_step)
        t = step - self.first_step
        if t < self.warmup_steps:
            return warm_up_rate(self.eta_max, t, self.warmup_steps, self.warmup_start)
        x = (t - (self.steps - self.decay_steps)) / (self.decay_steps - 1)
        return decay_rate(self.decay_shape, self.eta_max, self.eta_min, x)

    def phase(self, step: int) -> Phase:
        """Return "warmup", "constant" or "anneal"."""
        check_step_from(step, self.first_step)
        return find_phase(step, self.phase_ends(), "anneal")

    def phase_ends(self) -> dict[Phase, int]:
        """Return the last steps of the phases, in order."""
        ends: dict[Phase, int] = {}
        if self.warmup_steps:
            ends["warmup"] = self.first_step + self.warmup_steps
        if self.warmup_steps + self.decay_steps < self.steps:
            ends["constant"] = self.first_step + self.steps - self.decay_steps
        ends["anneal"] = self.first_step + self.steps - 1
        return ends


@SCHEDULES.register("wsd")
class WarmupStableDecayConfig(ScheduleConfig):
    """Warmup, a constant rate, and a short decay at the end of every stage (arXiv 2405.18392).

    For one known budget that decays as late as possible. Percentages are of every stage.
    """

    curve: ClassVar[type[Schedule]] = WarmupStableDecay
    rate_field: ClassVar[RateField | None] = "eta_max"

    kind: Literal["wsd"]
    """name of the schedule"""
    eta_max: Rate
    """learning rate between warmup and decay, above 0 and at most 1"""
    eta_min: Rate
    """learning rate at the end of every stage, above 0"""
    warmup: Amount = Field(default_factory=lambda: parse_amount("1%"))
    """linear rise to eta_max, such as `1%` of every stage or `200 steps`"""
    warmup_start: Rate | None = None
    """learning rate at which the warmup begins, above 0: for a stored model whose rate was annealed
    its last one, often a tenth of its peak; default 0"""
    decay: Amount = Field(default_factory=lambda: parse_amount("10%"))
    """the last part of a stage, which falls to eta_min, such as `10%` of the stage"""
    decay_shape: AnnealShape = "exponential"
    """exponential, 1-sqrt, linear or cosine"""

    @model_validator(mode="after")
    def _check(self) -> WarmupStableDecayConfig:
        check_rates(self.eta_min, self.eta_max)
        check_percentages("a stage", warmup=self.warmup, decay=self.decay)
        check_warmup_start(self.warmup_start, self.eta_max)
        return self

    @property
    def anneal_end(self) -> float:
        """Return eta_min."""
        return self.eta_min

    def build(self, first_step: int, steps: int, tokens_per_step: int) -> WarmupStableDecay:
        """Return the curve of one stage."""
        warmup = self.warmup.steps(steps, tokens_per_step)
        decay = self.decay.steps(steps, tokens_per_step)
        check_fit("a stage", steps, warmup=warmup, decay=decay)
        return WarmupStableDecay(
            eta_max=self.eta_max,
            eta_min=self.eta_min,
            warmup_steps=warmup,
            steps=steps,
            decay_steps=decay,
            decay_shape=self.decay_shape,
            first_step=first_step,
            warmup_start=self.warmup_start or 0.0,
        )
