"""A snapshot's fields do not change without its format."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from perennial.runs import snapshots
from perennial.runs.state import RunState

FIELDS = {4: "fbb9b47471e883f11d6178a60e4e69269b3c269337f332a83c2c483ebdbc0464"}
"""digest of the fields, by format"""


def test_the_fields_of_a_snapshot_are_those_of_its_format() -> None:
    """Who changes them raises FORMAT, writes a migration, and gives their digest here."""
    names = sorted(_add_fields(RunState, set()) | _add_fields(snapshots._Stages, set()))
    assert hashlib.sha256("\n".join(names).encode()).hexdigest() == FIELDS[snapshots.FORMAT]


def _add_fields(kind: Any, found: set[str]) -> set[str]:
    """Add the fields of a class, and of all classes that they are made of, to those found."""
    for name, its in get_type_hints(kind).items():
        field = f"{kind.__qualname__}.{name}"
        left_out = kind is RunState and name in snapshots._IN_THE_LEDGER
        if field in found or left_out or get_origin(its) is ClassVar:
            continue
        found.add(field)
        for part in _parts_of(its):
            if is_dataclass(part) or (isinstance(part, type) and issubclass(part, BaseModel)):
                _add_fields(part, found)
    return found


def _parts_of(kind: Any) -> Iterator[Any]:
    yield kind
    for part in get_args(kind):
        yield from _parts_of(part)
