"""What every learning-rate schedule has: a curve over steps, and a section of the run file.

A curve is a pure function of the trunk's step, in whole optimizer steps; it is what checkpoints and
the ledger store. A section (`ScheduleConfig`) holds the run file's keys, in the user's units, and
builds the curve when a stage's length is known.

Formulas and boundaries are those of arXiv 2403.08763: a phase includes the step at which it ends,
so the rate at a boundary is exactly the boundary's rate. A phase of no steps does not exist.
Past its last step a schedule stays at its last rate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

from perennial.errors import InputError
from perennial.fields import Amount, Section
from perennial.registry import Registry

Phase = Literal["warmup", "cooldown", "constant", "anneal", "unknown"]
"""Warmup rises to eta_max; cooldown falls to eta_const; anneal is any fall to eta_min. The phase of
a stored schedule whose plug-in is not installed is unknown."""

LATER_FIELDS: Mapping[str, float] = {"warmup_start": 0.0, "steps_before": 0}
"""Fields that curves did not have from the beginning, with the value where a record has none."""

RateField = Literal["eta_max", "eta_const"]
"""Fields of a schedule's section whose value a search may vary."""


@dataclass(frozen=True, slots=True)
class Schedule(ABC):
    """A curve: the learning rate of every optimizer step. Subclasses are frozen dataclasses.

    Fields must be plain JSON values (numbers, text, true and false), because `to_dict` writes them
    into checkpoints and `from_dict` reads them back.
    """

    kind: ClassVar[str]
    """name under which the curve is stored, and `kind` of its section in the run file"""
    spans_trunk: ClassVar[bool]
    """true for a curve that is made once, for the first stage, and holds for the whole trunk; false
    for one that every stage makes for itself"""

    @abstractmethod
    def eta(self, step: int) -> float:
        """Return the rate of the optimizer step from trunk step `step` to `step + 1`.

        Raises:
            ValueError: the schedule begins later than `step`.
        """

    @abstractmethod
    def phase(self, step: int) -> Phase:
        """Return the phase that trunk step `step` belongs to.

        Raises:
            ValueError: the schedule begins later than `step`.
        """

    @abstractmethod
    def phase_ends(self) -> dict[Phase, int]:
        """Return the last trunk steps of the phases that end, in order."""

    def to_dict(self) -> dict[str, Any]:
        """Return every field and the kind; JSON carries it without loss.

        A field of `LATER_FIELDS` is left out where it has the value that it stands for there, so
        that the record is that of the versions before it.
        """
        fields = asdict(self).items()
        return {"kind": self.kind} | {
            name: value
            for name, value in fields
            if name not in LATER_FIELDS or value != LATER_FIELDS[name]
        }

    def installed(self) -> Self:
        """Return the curve itself, to train with it.

        Raises:
            InputError: it is the stand-in of a stored curve whose plug-in is not installed.
        """
        return self


class ScheduleConfig(Section, ABC):
    """Base of a schedule's section in the run file; register a subclass in `SCHEDULES`.

    A subclass declares `kind: Literal["its-name"]`, its keys with a documentation string below
    every one, the class variables below, `anneal_end` and `build`. The class's docstring is the
    introduction of its table in the reference.
    """

    curve: ClassVar[type[Schedule]]
    """the curve that `build` returns; its `kind` is the name that this class is registered under"""
    rate_field: ClassVar[RateField | None] = None
    """the key that `perennial tune` varies; None for a schedule that cannot be searched"""

    kind: str

    @property
    @abstractmethod
    def anneal_end(self) -> float:
        """Return the rate at which the anneal of a release ends."""

    @abstractmethod
    def build(self, first_step: int, steps: int, tokens_per_step: int) -> Schedule:
        """Return the curve of a stage.

        Args:
            first_step: trunk step at which the stage begins; 0 where the curve spans the trunk.
            steps: optimizer steps of the stage; of the first stage where the curve spans the trunk.
            tokens_per_step: tokens in one global batch.

        Raises:
            InputError: the phases do not fit into the stage (see `check_fit`).
            ValueError: "problem; remedy" for anything else that is wrong.
        """

    @property
    def spans_trunk(self) -> bool:
        """Return whether the curve is made once, for the first stage."""
        return self.curve.spans_trunk

    @property
    def searched_rate(self) -> float:
        """Return the value of `rate_field`, as the curve will have it."""
        if self.rate_field is None:
            raise TypeError(f"schedule {self.kind} has no rate to search")
        return float(getattr(self, self.rate_field))

    def warmup_steps(self, steps: int, tokens_per_step: int) -> int:
        """Return the optimizer steps of the warmup; see `build` for the arguments."""
        warmup = getattr(self, "warmup", None)
        return warmup.steps(steps, tokens_per_step) if warmup is not None else 0

    def pinned(self, trunk: Schedule) -> Self:
        """Return the section with those phases in steps that are percentages of the first stage.

        A search may cut the first stage short; the curve must stay that of the whole stage.

        Args:
            trunk: the curve that the trunk's first stage was trained under.
        """
        return self

    def continued(self, trunk: Schedule, step: int) -> Self:
        """Return the section of a new run whose step 0 goes on where a trunk stands at `step`.

        A schedule that every stage makes for itself stays what it is.

        Args:
            trunk: the curve that the trunk was trained under.
            step: the trunk's step.
        """
        return self

    @classmethod
    def read_stored(cls, record: Mapping[str, Any]) -> Self:
        """Return the section that a run of an earlier version stored.

        Until version 0.1 all schedules were one flat section, stored with the keys of all kinds.
        """
        return cls.model_validate({k: v for k, v in record.items() if k in cls.model_fields})


SCHEDULES: Registry[type[ScheduleConfig]] = Registry(
    "learning-rate schedule", "perennial.schedules"
)
"""Sections of schedules by kind. A plug-in's entry point names a subclass of `ScheduleConfig`."""


def build_curve(
    config: ScheduleConfig, first_step: int, steps: int, tokens_per_step: int
) -> Schedule:
    """Return the curve of a stage; see `ScheduleConfig.build` for the arguments.

    Raises:
        InputError: the phases do not fit into the stage, or the curve refuses its values.
    """
    try:
        return config.build(first_step, steps, tokens_per_step)
    except ValueError as wrong:
        problem, _, remedy = str(wrong).partition("; ")
        raise InputError(
            "run file", "schedule", problem, remedy or "correct it", code="schedule-invalid"
        ) from None


def check_rates(eta_min: float, eta_max: float) -> None:
    """Check that the lowest rate is not above the peak; ValueError otherwise."""
    if eta_min > eta_max:
        raise ValueError(
            f"eta_min {eta_min:g} is above eta_max {eta_max:g}; use eta_min <= eta_max"
        )


def check_percentages(whole: str, **phases: Amount) -> None:
    """Check that percentages do not add up to more than 100; ValueError otherwise.

    Args:
        whole: what they are percentages of, such as "the first stage".
        phases: amounts by their keys in the run file; those in other units are left out.
    """
    if sum(amount.number for amount in phases.values() if amount.unit == "percent") > 100:
        names = " and ".join(f"{name} {amount}" for name, amount in phases.items())
        raise ValueError(f"{names} overlap: together they are more than {whole}; use at most 100%")


def check_fit(whole: str, steps: int, **phases: int) -> None:
    """Check that phases fit into the steps that they share; InputError otherwise.

    Args:
        whole: what has `steps` optimizer steps, such as "a first stage".
        phases: optimizer steps by their keys in the run file.
    """
    if sum(phases.values()) > steps:
        longest = max(phases, key=lambda name: phases[name])
        lengths = " and ".join(f"{name} ({count} steps)" for name, count in phases.items())
        raise InputError(
            "run file",
            f"schedule.{longest}",
            f"{lengths} do not fit into {whole} of {steps} steps",
            f"use at most {steps} steps in all",
            code="schedule-too-long",
        )


def warm_up_rate(peak: float, t: int, warmup_steps: int, start: float = 0.0) -> float:
    """Return the rate of step `t` of a linear rise from `start` to `peak` over `warmup_steps`."""
    # The quotient first: it is at most 1, so rounding cannot lift the product above the peak.
    return min(peak, start + (peak - start) * (t / warmup_steps))


def check_warmup_start(start: float | None, peak: float) -> None:
    """Check that a warmup does not begin above its peak; ValueError otherwise."""
    if start is not None and start > peak:
        raise ValueError(
            f"warmup_start {start:g} is above the rate {peak:g} that the warmup rises to; "
            "use a lower one"
        )


def check_steps_before(steps_before: int, **phases: Amount) -> None:
    """Check that a schedule with steps behind it has phases of a known length; else ValueError.

    Args:
        steps_before: steps of the schedule that another run took.
        phases: amounts by their keys in the run file.
    """
    for name, amount in phases.items():
        if steps_before and amount.unit == "percent":
            raise ValueError(
                f"{name} {amount} is a share of the first stage, which steps_before "
                f"{steps_before} says lies in another run; give {name} in steps"
            )


def shift_ends(ends: Mapping[Phase, int], steps_before: int) -> dict[Phase, int]:
    """Return the ends of phases counted from a later step; those that lie before it are left out.

    Args:
        ends: the last step of every phase that ends, in order.
        steps_before: the step from which they are counted.
    """
    shifted = {phase: end - steps_before for phase, end in ends.items()}
    return {phase: end for phase, end in shifted.items() if end >= 0}


def find_phase(step: int, ends: Mapping[Phase, int], last: Phase) -> Phase:
    """Return the phase of a step.

    Args:
        step: the step.
        ends: the last step of every phase that ends, in order.
        last: phase of the steps behind all of them.
    """
    return next((phase for phase, end in ends.items() if step <= end), last)
