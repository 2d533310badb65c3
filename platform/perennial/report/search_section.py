"""Results of searches as sections of the report, read from `searches/<name>/result.json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perennial.errors import InputError
from perennial.report.figures.layers import layers
from perennial.report.figures.pareto import pareto
from perennial.report.html import PageSection, Table
from perennial.search.layer_results import KIND, LayerSearchResult
from perennial.search.results import SearchResult
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from perennial.store import Store

_LEAD = (
    "Every point is a trial: a branch off the trunk that was trained for a while. Down and left is "
    "better; a trial on the front is beaten by no other in both. Bars are 95% intervals over "
    "documents; the dotted line is the front that a law fitted to the trials predicts."
)

_LAYERS_LEAD = (
    "Children of the trunk's first stage: models of its first layers, trained as it was, and "
    "beside them models as small that began with random weights. A child at parity has no higher "
    "held-out loss than the reference; bars are 95% intervals of the difference over documents and "
    "seeds."
)


def search_sections(store: Store) -> Iterator[PageSection]:
    """Yield a section for each search that has a result."""
    keys = [info.key for info in store.list("searches") if info.key.endswith("/result.json")]
    for key in keys:
        result = _read_result(store, key)
        title = f"Search: {result.search}"
        if isinstance(result, LayerSearchResult):
            lead, picture, table = _LAYERS_LEAD, layers(result), child_table(result)
        else:
            lead, picture, table = _LEAD, pareto(result), _advice(result)
        yield PageSection(title, lead, picture, f"Picture: {lead}", [table])


def _read_result(store: Store, key: str) -> SearchResult | LayerSearchResult:
    try:
        document = parse_json(store.read(key))
        is_of_layers = document.get("kind") == KIND
        return (LayerSearchResult if is_of_layers else SearchResult).from_dict(document)
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


def child_table(result: LayerSearchResult) -> Table:
    """Return the reference and its children, one a row."""
    its = result.reference
    rows = [("reference", f"{its.layers}", f"{its.parameters:,}", f"{its.tokens:,}",
             f"{its.flops:.3g}", f"{its.loss:.3f}", "")]  # fmt: skip
    rows += [
        (
            child.init + (" (parity)" if i == result.smallest else ""),
            f"{child.layers}",
            f"{child.parameters:,}",
            f"{child.tokens:,}",
            f"{child.flops:.3g}",
            f"{child.loss:.3f}",
            f"{child.above:+.3f} ({child.low:+.3f} to {child.high:+.3f})",
        )
        for i, child in enumerate(result.children)
    ]
    columns = ("begins with", "layers", "parameters", "tokens", "FLOPs", "loss", "above")
    return Table(columns, rows, frozenset(columns[1:]))
