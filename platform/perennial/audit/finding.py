"""One fault of a run's store, in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_LONGEST = 200


@dataclass(frozen=True)
class Finding:
    """One fault: the key where it shows, what is wrong, what would be right."""

    key: str
    problem: str
    right: str

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}; {self.right}"


def unequal(
    key: str,
    pairs: Mapping[str, tuple[Any, Any]],
    one: str = "it has",
    other: str = "it should be",
) -> Iterator[Finding]:
    """A finding for each name whose (found, right) differ; of mappings, what differs in them."""
    for name, (found, right) in pairs.items():
        if found != right:
            if isinstance(found, dict) and isinstance(right, dict):
                names = [n for n in {**found, **right} if found.get(n) != right.get(n)]
                found = {n: found.get(n) for n in names}
                right = {n: right.get(n) for n in names}
            yield Finding(key, f"{name}: {one} {_short(found)}", f"{other} {_short(right)}")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
