"""The infinite schedule: warmup, cooldown, then a constant rate without an end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self, get_args

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
    check_steps_before,
    check_warmup_start,
    find_phase,
    shift_ends,
    warm_up_rate,
)
from perennial.schedules.curves import CooldownShape, decay_rate
from perennial.schedules.validation import (
    check_choice,
    check_number,
    check_order,
    check_step_from,
    check_steps,
    check_warmup,
)


@dataclass(frozen=True, slots=True)
class InfiniteSchedule(Schedule):
    """A rate for the whole trunk: warmup, cooldown, then constant at `eta_const`.

    It never reaches `eta_min`: that is where an `Anneal` off this trunk ends. `alpha` bends the
    inverse-sqrt cooldown; the cosine one has no such parameter. With `warmup_steps` 0, step 0 is
    taken at `eta_max`. `steps_before` steps of it were taken in another run, before this trunk's
    step 0.
    """

    kind: ClassVar[str] = "infinite"
    spans_trunk: ClassVar[bool] = True

    eta_max: float
    eta_const: float
    eta_min: float
    warmup_steps: int
    cooldown_steps: int
    cooldown_shape: CooldownShape
    alpha: float = 10.0
    warmup_start: float = 0.0
    steps_before: int = 0

    def __post_init__(self) -> None:
        check_number("eta_max", self.eta_max)
        check_number("eta_const", self.eta_const)
        check_number("eta_min", self.eta_min)
        check_order(eta_min=self.eta_min, eta_const=self.eta_const, eta_max=self.eta_max)
        check_steps("warmup_steps", self.warmup_steps, 0)
        check_warmup(self.warmup_start, self.eta_max, self.warmup_steps)
        check_steps("cooldown_steps", self.cooldown_steps, 0)
        check_choice("cooldown_shape", self.cooldown_shape, get_args(CooldownShape))
        check_number("alpha", self.alpha)
        check_steps("steps_before", self.steps_before, 0)
        if self.cooldown_steps == 0 and self.eta_const != self.eta_max:
            raise ValueError(
                f"cooldown_steps is 0, so the rate would jump from eta_max = {self.eta_max!r} to "
                f"eta_const = {self.eta_const!r}; it must be 1 or more, or the two rates equal"
            )

    def eta(self, step: int) -> float:
        """Return the rate of the optimizer step from `step` to `step + 1`."""
        check_step_from(step, 0)
        step += self.steps_before
        if step < self.warmup_steps:
            return warm_up_rate(self.eta_max, step, self.warmup_steps, self.warmup_start)
        if self.cooldown_steps == 0:
            return self.eta_const
        x = (step - self.warmup_steps) / self.cooldown_steps
        return decay_rate(self.cooldown_shape, self.eta_max, self.eta_const, x, self.alpha)

    def phase(self, step: int) -> Phase:
        """Return the phase that `step` belongs to."""
        check_step_from(step, 0)
        return find_phase(step, self.phase_ends(), "constant")

    def phase_ends(self) -> dict[Phase, int]:
        """Return the last steps of the phases that end, in order."""
        ends: dict[Phase, int] = {}
        if self.warmup_steps:
            ends["warmup"] = self.warmup_steps
        if self.cooldown_steps:
            ends["cooldown"] = self.warmup_steps + self.cooldown_steps
        return shift_ends(ends, self.steps_before)


@SCHEDULES.register("infinite")
class InfiniteConfig(ScheduleConfig):
    """Warmup and cooldown once, then a constant rate (arXiv 2403.08763, section 7).

    For corpora that keep arriving: every release anneals on a branch of its own, and the trunk goes
    on from where it never decayed. Percentages are of the first stage.
    """

    curve: ClassVar[type[Schedule]] = InfiniteSchedule
    rate_field: ClassVar[RateField | None] = "eta_const"

    kind: Literal["infinite"] = "infinite"
    """name of the schedule"""
    eta_max: Rate
    """peak learning rate, above 0 and at most 1"""
    eta_const: Rate | None = None
    """constant rate, between eta_min and eta_max; default their midpoint"""
    eta_min: Rate
    """rate at which the anneal of a release ends, above 0 (an exponential anneal divides by it)"""
    warmup: Amount = Field(default_factory=lambda: parse_amount("1%"))
    """linear rise to eta_max, such as `1%` of the first stage or `200 steps`"""
    warmup_start: Rate | None = None
    """learning rate at which the warmup begins, above 0: for a stored model whose rate was annealed
    its last one, often a tenth of its peak; default 0"""
    cooldown: Amount = Field(default_factory=lambda: parse_amount("60%"))
    """fall from eta_max to eta_const, such as `60%` of the first stage"""
    cooldown_shape: CooldownShape = "cosine"
    """cosine (stays high for longer) or inverse-sqrt (falls early, with a long shallow tail)"""
    alpha: Annotated[float, Field(gt=0)] = 10.0
    """time scale of the inverse-sqrt cooldown, above 0; a larger one falls earlier"""
    steps_before: Annotated[int, Field(ge=0)] = 0
    """steps of this schedule that the model of `model.path` has behind it: the first stage goes on
    from there. The run file in a trunk kit has it; default 0"""

    @model_validator(mode="after")
    def _check(self) -> InfiniteConfig:
        check_rates(self.eta_min, self.eta_max)
        if not self.eta_min <= self.searched_rate <= self.eta_max:
            raise ValueError(
                f"eta_const {self.eta_const:g} is outside eta_min {self.eta_min:g} .. eta_max "
                f"{self.eta_max:g}; use eta_min <= eta_const <= eta_max"
            )
        check_percentages("the first stage", warmup=self.warmup, cooldown=self.cooldown)
        check_steps_before(self.steps_before, warmup=self.warmup, cooldown=self.cooldown)
        check_warmup_start(self.warmup_start, self.eta_max)
        return self

    @property
    def anneal_end(self) -> float:
        """Return eta_min."""
        return self.eta_min

    @property
    def searched_rate(self) -> float:
        """Return eta_const, or the midpoint of eta_max and eta_min as in the paper's table 14."""
        return (self.eta_max + self.eta_min) / 2 if self.eta_const is None else self.eta_const

    def build(self, first_step: int, steps: int, tokens_per_step: int) -> InfiniteSchedule:
        """Return the trunk's curve from the length of its first stage."""
        warmup = self.warmup.steps(steps, tokens_per_step)
        cooldown = self.cooldown.steps(steps, tokens_per_step)
        together = self.steps_before + steps
        check_fit("a first stage", together, warmup=warmup, cooldown=cooldown)
        return InfiniteSchedule(
            eta_max=self.eta_max,
            eta_const=self.searched_rate,
            eta_min=self.eta_min,
            warmup_steps=warmup,
            cooldown_steps=cooldown,
            cooldown_shape=self.cooldown_shape,
            alpha=self.alpha,
            warmup_start=self.warmup_start or 0.0,
            steps_before=self.steps_before,
        )

    def pinned(self, trunk: Schedule) -> Self:
        """Return the section with warmup and cooldown in the steps of `trunk`."""
        if not isinstance(trunk, InfiniteSchedule):
            return self
        phases = {"warmup": trunk.warmup_steps, "cooldown": trunk.cooldown_steps}
        steps = {name: parse_amount(f"{count} steps") for name, count in phases.items()}
        return self.model_copy(update=steps)

    def continued(self, trunk: Schedule, step: int) -> Self:
        """Return the section with the phases in steps, of which those up to `step` are behind."""
        if not isinstance(trunk, InfiniteSchedule):
            return self
        names = ("eta_max", "eta_const", "eta_min", "cooldown_shape", "alpha")
        its = {name: getattr(trunk, name) for name in names}
        its |= {"warmup_start": trunk.warmup_start or None}
        before = {"steps_before": trunk.steps_before + step}
        return self.pinned(trunk).model_copy(update=its | before)
