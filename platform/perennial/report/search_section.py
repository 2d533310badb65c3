"""What searches found, as sections of the report: read from `searches/<name>/result.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from perennial.report.figures.pareto import pareto
from perennial.report.html import Section, Table

if TYPE_CHECKING:
    from perennial.store import Store

_LEAD = (
    "Every point is a trial: a branch off the trunk that was trained for a while. Down and left is "
    "better; a trial on the front is beaten by no other in both. Bars are 95% intervals over "
    "documents; the dotted line is the front that a law fitted to the trials predicts."
)


def search_sections(store: Store) -> Iterator[Section]:
    """A section for each search that has a result."""
    keys = [info.key for info in store.list("searches") if info.key.endswith("/result.json")]
    for key in keys:
        found = json.loads(store.read(key))
        yield Section(
            f"Search: {found['search']}",
            _LEAD,
            pareto(found),
            f"Picture: {_LEAD}",
            [_advice(found)],
        )


def _advice(found: Mapping[str, Any]) -> Table:
    rows = [
        (
            each["taste"].replace("-", " "),
            _point(trial := found["trials"][each["trial"]]),
            *(f"{value:+.3f}" for value in trial["values"]),
        )
        for each in found["advice"]
    ]
    columns = ("to", "use", *found["objectives"])
    return Table(columns, rows, frozenset(columns[2:]))


def _point(trial: Mapping[str, Any]) -> str:
    point = trial["point"]
    return f"eta {point['eta']:.3g}, replay {point['replay']:.3g}"
