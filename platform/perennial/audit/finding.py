"""A fault of a run's store, printed as one line; and fields of what the store recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from perennial.errors import InputError
from perennial.runs.events import Document

if TYPE_CHECKING:
    from perennial.store import Store

_LONGEST = 200


@dataclass(frozen=True)
class Finding:
    """A fault in a store.

    key: the object in which it shows.
    problem: what is wrong there.
    right: the correct state.
    """

    key: str
    problem: str
    right: str

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}; {self.right}"


def as_finding(store: Store, wrong: InputError) -> Finding:
    """Return the finding that a refusal to read a store is."""
    key = wrong.where.removeprefix(f"{store.url}/")
    problem = f"{wrong.field}: {wrong.problem}" if wrong.field else wrong.problem
    return Finding(key, " ".join(problem.split()), wrong.remedy)


def unreadable(key: str, broken: Exception) -> Finding:
    """Return the finding that an object cannot be read."""
    if isinstance(broken, FileNotFoundError):
        return Finding(key, "is missing", "what the ledger names is committed")
    return Finding(key, f"cannot be read ({' '.join(str(broken).split())[:200]})", "restore it")


def field_of(document: Document, name: str) -> JsonValue:
    """Return the value of a dotted field of a document; None where it is not there."""
    value: JsonValue = document
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def unequal_tokens(
    key: str, stated: tuple[dict[str, int], int], right: tuple[dict[str, int], int]
) -> Iterator[Finding]:
    """Yield a finding where an object says another number of tokens than is right.

    Args:
        key: the object.
        stated: tokens by corpus of the mix, and of all others, as it has them.
        right: as they should be.
    """
    names = ("tokens_seen", "tokens_elsewhere")
    yield from unequal(key, dict(zip(names, zip(stated, right, strict=True), strict=True)))


def unequal(
    key: str,
    pairs: Mapping[str, tuple[Any, Any]],
    one: str = "it has",
    other: str = "it should be",
) -> Iterator[Finding]:
    """Yield a finding for every pair whose values differ; of two mappings, only their differences.

    Args:
        key: the object that has the actual values.
        pairs: (actual, right) by the name that the message uses.
        one: words before the actual value.
        other: words before the right value.
    """
    for name, (actual, right) in pairs.items():
        if actual != right:
            if isinstance(actual, dict) and isinstance(right, dict):
                names = [n for n in {**actual, **right} if actual.get(n) != right.get(n)]
                actual = {n: actual.get(n) for n in names}
                right = {n: right.get(n) for n in names}
            yield Finding(key, f"{name}: {one} {_short(actual)}", f"{other} {_short(right)}")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
