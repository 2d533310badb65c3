"""Curves as plain records, for checkpoints and the ledger: out, back in, and how two differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NoReturn

from pydantic import ConfigDict

from perennial.errors import InputError
from perennial.schedules.anneal import Anneal
from perennial.schedules.base import LATER_FIELDS, SCHEDULES, Phase, Schedule, ScheduleConfig


@dataclass(frozen=True, slots=True)
class AbsentSchedule(Schedule):
    """The stand-in of a stored curve whose plug-in is not installed: to show, not to train with.

    Its rate is NaN and its phase unknown at every step.
    """

    kind: ClassVar[str] = "absent"
    spans_trunk: ClassVar[bool] = False

    record: Mapping[str, Any]

    def eta(self, step: int) -> float:
        """Return NaN."""
        return float("nan")

    def phase(self, step: int) -> Phase:
        """Return "unknown"."""
        return "unknown"

    def phase_ends(self) -> dict[Phase, int]:
        """Return no phase."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return the record as it was stored."""
        return dict(self.record)

    def installed(self) -> NoReturn:
        """Raise InputError that names the kind that is missing."""
        raise InputError(
            "the store",
            "schedule",
            f"the trunk was trained under the schedule {self.record.get('kind')!r}, which no "
            "installed package brings",
            "install the package that brings it",
            code="plugin-missing",
        )


class AbsentScheduleConfig(ScheduleConfig):
    """The stand-in of a section that a run stored and whose plug-in is not installed."""

    model_config = ConfigDict(extra="allow")
    curve: ClassVar[type[Schedule]] = AbsentSchedule

    @property
    def anneal_end(self) -> float:
        """Return NaN."""
        return float("nan")

    def build(self, first_step: int, steps: int, tokens_per_step: int) -> Schedule:
        """Return a stand-in of the curve."""
        return AbsentSchedule(self.model_dump())


def to_dict(schedule: Schedule) -> dict[str, Any]:
    """Return every field of a curve and its kind; JSON carries it without loss."""
    return schedule.to_dict()


def from_dict(record: Mapping[str, Any]) -> Schedule:
    """Return the curve that `to_dict` wrote; an `AbsentSchedule` for a kind that is not installed.

    Raises:
        ValueError: the record names no kind, lacks a field (no default is filled in but for
            `LATER_FIELDS`, because a resumed run must not depend on the code's version), has one
            that the kind has not, or holds a wrong value.
    """
    kind = record.get("kind")
    if not isinstance(kind, str):
        raise ValueError(f"kind is {kind!r}; it must be the name of a schedule")
    curve = _curve_of(kind)
    if curve is None:
        return AbsentSchedule(dict(record))
    wanted = {field.name for field in fields(curve)}
    record = {**_later(curve), **record}
    given = set(record) - {"kind"}
    if missing := sorted(wanted - given):
        raise ValueError(f"{missing[0]} is missing; a record of kind {kind!r} needs it")
    if unknown := sorted(given - wanted):
        raise ValueError(f"{unknown[0]} is not a field of kind {kind!r}; remove it")
    return curve(**{name: record[name] for name in wanted})


def differences(a: Schedule, b: Schedule) -> list[str]:
    """Return "field: value in a -> value in b" for every field in which two curves differ."""
    records = [to_dict(curve) for curve in (a, b)]
    # What a record leaves out for its usual value is no difference to a kind without the field.
    either = {name for record in records for name in record}
    later = {name: value for name, value in LATER_FIELDS.items() if name in either}
    left, right = ({**later, **record} for record in records)
    return [
        f"{name}: {_shown(left, name)} -> {_shown(right, name)}"
        for name in {**left, **right}
        if name not in left or name not in right or left[name] != right[name]
    ]


def _later(curve: type[Schedule]) -> dict[str, float]:
    """Return those of `LATER_FIELDS` that a curve has."""
    names = {field.name for field in fields(curve)}
    return {name: value for name, value in LATER_FIELDS.items() if name in names}


def _curve_of(kind: str) -> type[Schedule] | None:
    if kind == Anneal.kind:
        return Anneal
    if kind not in SCHEDULES:
        # Worker processes read a job's schedule without having loaded a run file.
        SCHEDULES.load_plugins()
    return SCHEDULES[kind].curve if kind in SCHEDULES else None


def _shown(record: dict[str, Any], name: str) -> str:
    return repr(record[name]) if name in record else "absent"
