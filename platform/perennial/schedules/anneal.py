"""The anneal of a release: a branch off the trunk that falls to the lowest rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, get_args

from perennial.errors import InputError
from perennial.fields import AmountValue
from perennial.schedules.base import Phase, Schedule
from perennial.schedules.curves import AnnealShape, decay_rate
from perennial.schedules.validation import (
    check_choice,
    check_number,
    check_order,
    check_step_from,
    check_steps,
)


class AnnealSettings(Protocol):
    """The keys of the run file's section `release` that an anneal depends on."""

    @property
    def anneal(self) -> AmountValue:
        """Return the length; a percentage is of the trunk's steps so far."""
        ...

    @property
    def shape(self) -> AnnealShape:
        """Return the form of the fall."""
        ...


@dataclass(frozen=True, slots=True)
class Anneal(Schedule):
    """A branch that leaves the trunk's checkpoint at `start_step` and anneals for `steps` steps.

    Its first optimizer step, `start_step`, is taken at exactly `eta_start` (the trunk's rate
    there) and its last, `start_step + steps - 1`, at exactly `eta_min`: the paper's formula with
    t_end the last step taken, so that what is released was trained down to `eta_min`.
    """

    kind: ClassVar[str] = "anneal"
    spans_trunk: ClassVar[bool] = False

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
        """Return the rate of the optimizer step from trunk step `step` to `step + 1`."""
        check_step_from(step, self.start_step)
        x = (step - self.start_step) / (self.steps - 1)
        return decay_rate(self.shape, self.eta_start, self.eta_min, x)

    def phase(self, step: int) -> Phase:
        """Return "anneal"."""
        check_step_from(step, self.start_step)
        return "anneal"

    def phase_ends(self) -> dict[Phase, int]:
        """Return the last step of the branch."""
        return {"anneal": self.start_step + self.steps - 1}


def release_anneal(
    release: AnnealSettings, anneal_end: float, trunk: Schedule, step: int, tokens_per_step: int
) -> Anneal | None:
    """Return the rate of a branch off the trunk, or None where the trunk has decayed already.

    Args:
        release: length and shape of the anneal.
        anneal_end: rate of its last step.
        trunk: curve of the stage that the branch leaves.
        step: trunk step at which it leaves.
        tokens_per_step: tokens in one global batch.

    Raises:
        InputError: the anneal has fewer than two steps, or the plug-in that brought the trunk's
            schedule is not installed.
    """
    if trunk.installed().phase(step) == "anneal":
        return None
    steps = release.anneal.steps(step, tokens_per_step)
    if steps < 2:
        raise InputError(
            "run file",
            "release.anneal",
            f"{release.anneal} is {steps} steps at trunk step {step}",
            "give an anneal of at least 2 steps",
            code="anneal-too-short",
        )
    return Anneal(step, steps, trunk.eta(step), anneal_end, release.shape)
