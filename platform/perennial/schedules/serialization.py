"""Schedules as plain records, for checkpoints: out, back in, and where two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, get_args

from perennial.schedules.kinds import Schedule

_KINDS: dict[str, type[Schedule]] = {kind.kind: kind for kind in get_args(Schedule)}


def to_dict(schedule: Schedule) -> dict[str, Any]:
    """Every field, and the kind; JSON carries it without loss."""
    return {"kind": schedule.kind, **asdict(schedule)}


def from_dict(record: Mapping[str, Any]) -> Schedule:
    """The schedule that `to_dict` wrote.

    Raises ValueError for an unknown kind, a field that is missing (no default is filled in: a
    resumed run must not depend on the code's version) or not one of the kind's, or a wrong value.
    """
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(_KINDS)}")
    wanted = {field.name for field in fields(_KINDS[kind])}
    found = set(record) - {"kind"}
    if missing := sorted(wanted - found):
        raise ValueError(f"{missing[0]} is missing; a record of kind {kind!r} needs it")
    if unknown := sorted(found - wanted):
        raise ValueError(f"{unknown[0]} is not a field of kind {kind!r}; remove it")
    return _KINDS[kind](**{name: record[name] for name in wanted})


def differences(a: Schedule, b: Schedule) -> list[str]:
    """One line "field: value in a -> value in b" for each field that differs; empty when equal."""
    left, right = to_dict(a), to_dict(b)
    return [
        f"{name}: {_shown(left, name)} -> {_shown(right, name)}"
        for name in {**left, **right}
        if name not in left or name not in right or left[name] != right[name]
    ]


def _shown(record: dict[str, Any], name: str) -> str:
    return repr(record[name]) if name in record else "absent"
