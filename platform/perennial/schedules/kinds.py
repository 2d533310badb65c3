"""The schedules. Each answers, for a step: the rate, the phase, and where the phases end.

Formulas and boundaries are those of arXiv 2403.08763: a phase includes the step at which it ends,
so the rate at a boundary is exactly the boundary's rate. A phase of no steps does not exist.
Past its last step a schedule stays at its last rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

from perennial.schedules.curves import AnnealShape, CooldownShape, fall
from perennial.schedules.validation import (
    check_choice,
    check_number,
    check_order,
    check_step_from,
    check_steps,
)

Phase = Literal["warmup", "cooldown", "constant", "anneal"]
"""Warmup rises to eta_max; cooldown falls to eta_const; anneal is any fall to eta_min."""


@dataclass(frozen=True, slots=True)
class InfiniteSchedule:
    """The trunk's rate for ever: warmup, cooldown, then constant at `eta_const`.

    It never reaches `eta_min`: that is where an `Anneal` off this trunk ends. `alpha` bends the
    inverse-sqrt cooldown; the cosine one has no such parameter. With `warmup_steps` 0, step 0 is
    taken at `eta_max`.
    """

    kind: ClassVar[str] = "infinite"

    eta_max: float
    eta_const: float
    eta_min: float
    warmup_steps: int
    cooldown_steps: int
    cooldown_shape: CooldownShape
    alpha: float = 10.0

    def __post_init__(self) -> None:
        check_number("eta_max", self.eta_max)
        check_number("eta_const", self.eta_const)
        check_number("eta_min", self.eta_min)
        check_order(eta_min=self.eta_min, eta_const=self.eta_const, eta_max=self.eta_max)
        check_steps("warmup_steps", self.warmup_steps, 0)
        check_steps("cooldown_steps", self.cooldown_steps, 0)
        check_choice("cooldown_shape", self.cooldown_shape, get_args(CooldownShape))
        check_number("alpha", self.alpha)
        if self.cooldown_steps == 0 and self.eta_const != self.eta_max:
            raise ValueError(
                f"cooldown_steps is 0, so the rate would jump from eta_max = {self.eta_max!r} to "
                f"eta_const = {self.eta_const!r}; it must be 1 or more, or the two rates equal"
            )

    def eta(self, step: int) -> float:
        """The rate of the optimizer step from `step` to `step + 1`; ValueError if step < 0."""
        check_step_from(step, 0)
        if step < self.warmup_steps:
            return _warm(self.eta_max, step, self.warmup_steps)
        if self.cooldown_steps == 0:
            return self.eta_const
        x = (step - self.warmup_steps) / self.cooldown_steps
        return fall(self.cooldown_shape, self.eta_max, self.eta_const, x, self.alpha)

    def phase(self, step: int) -> Phase:
        """The phase that `step` belongs to; ValueError if step < 0."""
        check_step_from(step, 0)
        return _phase_at(step, self.phase_ends(), "constant")

    def phase_ends(self) -> dict[Phase, int]:
        """The last step of each phase that ends, in order."""
        ends: dict[Phase, int] = {}
        if self.warmup_steps:
            ends["warmup"] = self.warmup_steps
        if self.cooldown_steps:
            ends["cooldown"] = self.warmup_steps + self.cooldown_steps
        return ends


@dataclass(frozen=True, slots=True)
class Anneal:
    """A branch that leaves the trunk's checkpoint at `start_step` and anneals for `steps` steps.

    Its first optimizer step, `start_step`, is taken at exactly `eta_start` (the trunk's rate
    there) and its last, `start_step + steps - 1`, at exactly `eta_min`: the paper's formula with
    t_end the last step taken, so that what is released was trained down to `eta_min`.
    """

    kind: ClassVar[str] = "anneal"

    start_step: int
    steps: int
    eta_start: float
    eta_min: float
    shape: AnnealShape

    def __post_init__(self) -> None:
        check_steps("start_step", self.start_step, 0)
        check_steps("steps", self.steps, 2)  # one at eta_start and one at eta_min
        check_choice("shape", self.shape, get_args(AnnealShape))
        check_number("eta_start", self.eta_start)
        check_number("eta_min", self.eta_min, zero_allowed=self.shape != "exponential")
        check_order(eta_min=self.eta_min, eta_start=self.eta_start)

    def eta(self, step: int) -> float:
        """The rate of the optimizer step from `step` to `step + 1`, in the trunk's numbering.

        Raises ValueError for a step before `start_step`: that step is the trunk's.
        """
        check_step_from(step, self.start_step)
        x = (step - self.start_step) / (self.steps - 1)
        return fall(self.shape, self.eta_start, self.eta_min, x)

    def phase(self, step: int) -> Phase:
        """Always "anneal"; ValueError before `start_step`."""
        check_step_from(step, self.start_step)
        return "anneal"

    def phase_ends(self) -> dict[Phase, int]:
        """The last step of the branch."""
        return {"anneal": self.start_step + self.steps - 1}


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """The paper's first recipe: one stage re-warms to `eta_max` and decays again to `eta_min`.

    `first_step` is the trunk step at which the stage starts; `steps` its length, warmup included.
    As in the paper, `eta_min` is reached at `first_step + steps`: the last step taken, one before
    it, is above `eta_min` by (eta_max - eta_min) / 2 * (1 - cos(pi / (steps - warmup_steps))).
    """

    kind: ClassVar[str] = "cosine"

    eta_max: float
    eta_min: float
    warmup_steps: int
    steps: int
    first_step: int = 0

    def __post_init__(self) -> None:
        check_number("eta_max", self.eta_max)
        check_number("eta_min", self.eta_min, zero_allowed=True)
        check_order(eta_min=self.eta_min, eta_max=self.eta_max)
        check_steps("warmup_steps", self.warmup_steps, 0)
        check_steps("steps", self.steps, 1)
        check_steps("first_step", self.first_step, 0)
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}; it must be below steps = {self.steps}"
            )

    def eta(self, step: int) -> float:
        """The rate of the optimizer step from `step` to `step + 1`; ValueError before the stage."""
        check_step_from(step, self.first_step)
        t = step - self.first_step
        if t < self.warmup_steps:
            return _warm(self.eta_max, t, self.warmup_steps)
        x = (t - self.warmup_steps) / (self.steps - self.warmup_steps)
        return fall("cosine", self.eta_max, self.eta_min, x)

    def phase(self, step: int) -> Phase:
        """ "warmup" or "anneal"; ValueError before the stage."""
        check_step_from(step, self.first_step)
        return _phase_at(step, self.phase_ends(), "anneal")

    def phase_ends(self) -> dict[Phase, int]:
        """The last step of each phase, in order."""
        ends: dict[Phase, int] = {}
        if self.warmup_steps:
            ends["warmup"] = self.first_step + self.warmup_steps
        ends["anneal"] = self.first_step + self.steps
        return ends


@dataclass(frozen=True, slots=True)
class WarmupStableDecay:
    """Warmup, constant at `eta_max`, and an anneal over the last `decay_steps` of `steps`.

    The anneal begins at `first_step + steps - decay_steps`, still at `eta_max`, and takes the last
    step, `first_step + steps - 1`, at exactly `eta_min`, as an `Anneal` does.
    """

    kind: ClassVar[str] = "wsd"

    eta_max: float
    eta_min: float
    warmup_steps: int
    steps: int
    decay_steps: int
    decay_shape: AnnealShape
    first_step: int = 0

    def __post_init__(self) -> None:
        check_choice("decay_shape", self.decay_shape, get_args(AnnealShape))
        check_number("eta_max", self.eta_max)
        check_number("eta_min", self.eta_min, zero_allowed=self.decay_shape != "exponential")
        check_order(eta_min=self.eta_min, eta_max=self.eta_max)
        check_steps("warmup_steps", self.warmup_steps, 0)
        check_steps("decay_steps", self.decay_steps, 2)  # one at eta_max and one at eta_min
        check_steps("steps", self.steps, 2)
        check_steps("first_step", self.first_step, 0)
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"steps is {self.steps}; it must be warmup_steps + decay_steps = "
                f"{self.warmup_steps + self.decay_steps} or more"
            )

    def eta(self, step: int) -> float:
        """The rate of the optimizer step from `step` to `step + 1`; ValueError before the stage."""
        check_step_from(step, self.first_step)
        t = step - self.first_step
        if t < self.warmup_steps:
            return _warm(self.eta_max, t, self.warmup_steps)
        x = (t - (self.steps - self.decay_steps)) / (self.decay_steps - 1)
        return fall(self.decay_shape, self.eta_max, self.eta_min, x)

    def phase(self, step: int) -> Phase:
        """ "warmup", "constant" or "anneal"; ValueError before the stage."""
        check_step_from(step, self.first_step)
        return _phase_at(step, self.phase_ends(), "anneal")

    def phase_ends(self) -> dict[Phase, int]:
        """The last step of each phase, in order."""
        ends: dict[Phase, int] = {}
        if self.warmup_steps:
            ends["warmup"] = self.first_step + self.warmup_steps
        if self.warmup_steps + self.decay_steps < self.steps:
            ends["constant"] = self.first_step + self.steps - self.decay_steps
        ends["anneal"] = self.first_step + self.steps - 1
        return ends


@dataclass(frozen=True, slots=True)
class ConstantSchedule:
    """Warmup once, then `eta_const` for ever."""

    kind: ClassVar[str] = "constant"

    eta_const: float
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_number("eta_const", self.eta_const)
        check_steps("warmup_steps", self.warmup_steps, 0)

    def eta(self, step: int) -> float:
        """The rate of the optimizer step from `step` to `step + 1`; ValueError if step < 0."""
        check_step_from(step, 0)
        if step < self.warmup_steps:
            return _warm(self.eta_const, step, self.warmup_steps)
        return self.eta_const

    def phase(self, step: int) -> Phase:
        """ "warmup" or "constant"; ValueError if step < 0."""
        check_step_from(step, 0)
        return _phase_at(step, self.phase_ends(), "constant")

    def phase_ends(self) -> dict[Phase, int]:
        """The last step of the warmup, if there is one."""
        return {"warmup": self.warmup_steps} if self.warmup_steps else {}


Schedule: TypeAlias = (
    InfiniteSchedule | Anneal | CosineSchedule | WarmupStableDecay | ConstantSchedule
)


def _warm(peak: float, t: int, warmup_steps: int) -> float:
    # The quotient first: it is at most 1, so rounding cannot lift the product above the peak.
    return peak * (t / warmup_steps)


def _phase_at(step: int, ends: dict[Phase, int], last: Phase) -> Phase:
    return next((phase for phase, end in ends.items() if step <= end), last)
