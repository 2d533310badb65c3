"""Results of searches as sections of the report, read from `searches/<name>/result.json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perennial.errors import InputError
from perennial.report.figures.pareto import pareto
from perennial.report.html import PageSection, Table
from perennial.search.results import SearchResult
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from perennial.store import Store

_LEAD = (
    "Every point is a trial: a branch off the trunk that was trained for a while. Down and left is "
    "better; a trial on the front is beaten by no other in both. Bars are 95% intervals over "
    "documents; the dotted line is the front that a law fitted to the trials predicts."
)


def search_sections(store: Store) -> Iterator[PageSection]:
    """Yield a section for each search that has a result."""
    keys = [info.key for info in store.list("searches") if info.key.endswith("/result.json")]
    for key in keys:
        result = _read_result(store, key)
        picture, advice = pareto(result), _advice(result)
        yield PageSection(f"Search: {result.search}", _LEAD, picture, f"Picture: {_LEAD}", [advice])


def _read_result(store: Store, key: str) -> SearchResult:
    try:
        return SearchResult.from_dict(parse_json(store.read(key)))
    except (ValueError, LookupError, TypeError, AttributeError) as broken:
        raise InputError(
            f"{store.url}/{key}", "", f"cannot be read ({' '.join(str(broken).split())[:200]})",
            "restore it from a copy of the store, or remove it to leave its section out",
            code="search-result-unreadable",
        ) from None  # fmt: skip


def _advice(result: SearchResult) -> Table:
    rows = []
    for advice in result.advice:
        trial = result.trials[advice.trial]
        point = f"eta {trial.point.eta:.3g}, replay {trial.point.replay:.3g}"
        values = (f"{value:+.3f}" for value in trial.values)
        rows.append((advice.taste.replace("-", " "), point, *values))
    columns = ("to", "use", *result.objectives)
    return Table(columns, rows, frozenset(columns[2:]))
