"""Searches: which kind a tuning file asks for, with the picture of its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perennial.config.search import TuningSpec
    from perennial.controller.context import Workspace
    from perennial.search.layer_results import LayerSearchResult
    from perennial.search.layer_search import LayerSearchPlan
    from perennial.search.results import SearchResult
    from perennial.search.service import SearchPlan


def tune(
    work: Workspace, where: str, spec: TuningSpec, output: Path | None
) -> SearchResult | LayerSearchResult:
    """Run a search; see `Run.tune`.

    Args:
        work: the run.
        where: the tuning file, for errors.
        spec: its contents.
        output: a local folder for the files of the result as well; None: none.
    """
    if spec.inheritune is not None:
        from perennial.report.figures.layers import layers
        from perennial.search.layer_search import layer_search

        return layer_search(work, where, spec, lambda result: layers(result).png(), output)
    from perennial.report.figures.pareto import pareto
    from perennial.search import service

    return service.tune(work, where, spec, lambda result: pareto(result).png(), output)


def plan_tune(work: Workspace, where: str, spec: TuningSpec) -> SearchPlan | LayerSearchPlan:
    """Return the trials that `tune` would run."""
    if spec.inheritune is not None:
        from perennial.search.layer_search import plan_layer_search

        return plan_layer_search(work, where, spec)
    from perennial.search import service

    return service.plan_tune(work, where, spec)
