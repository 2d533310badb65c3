"""Pages and pictures: the report, a comparison, and the learning rate of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.api.results import ReportPage
from perennial.corpora import list_landed
from perennial.errors import InputError
from perennial.runs.ledger import now

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from perennial.api.results import RunPlan
    from perennial.controller.context import Workspace
    from perennial.report.compare import Comparison
    from perennial.report.figures.style import Picture
    from perennial.search.results import SearchResult

_CURVE_POINTS = 200


def write_report(work: Workspace, output: Path | None) -> ReportPage:
    """Write the report's page; see `Run.report`."""
    from perennial.report.build import KEY, page
    from perennial.report.html import render

    if not work.state.corpora:
        landed = [corpus.name for corpus in list_landed(work.inbox)]
        if landed:
            raise InputError(
                work.where, "", f"{landed[0]} has landed and no stage is trained yet, so there is "
                "nothing to report", f"use `perennial run {work.where}`", code="nothing-trained",
            )  # fmt: skip
        raise InputError(
            work.where, "", "nothing has landed yet, so there is nothing to report",
            f"use `perennial land {work.where} NAME FILES...`", code="nothing-landed",
        )  # fmt: skip
    if output is None:
        work.store.check()
    html = render(page(work, now()))
    if output is not None:
        output.write_text(html, encoding="utf-8")
    try:
        work.store.write(KEY, html.encode())
    except OSError as refused:
        if output is None:
            raise
        work.log(f"notice: the page is in {output} alone, for the store refused it ({refused})")
    else:
        work.notify(lambda observer: observer.report_written(work, html.encode()))
    if output is None:
        return ReportPage(f"{work.store.url}/{KEY}", html)
    return ReportPage(str(output.absolute()), html)


def write_comparison(comparison: Comparison, files: Mapping[str, Path]) -> None:
    """Write runs side by side as one HTML page, as CSV, as LaTeX.

    Args:
        comparison: of runs.
        files: by "page", "csv" and "latex", those that are wanted.
    """
    from perennial.report.compare_files import comparison_csv, comparison_latex
    from perennial.report.compare_page import comparison_html

    texts: dict[str, Callable[[], str]] = {
        "page": lambda: comparison_html(comparison, now()),
        "csv": lambda: comparison_csv(comparison),
        "latex": lambda: comparison_latex(comparison),
    }
    for kind, path in files.items():
        path.write_text(texts[kind](), encoding="utf-8")


def draw_rates(plan: RunPlan, picture: Path) -> None:
    """Draw the learning rate of a plan, with its release, into a PNG file."""
    from perennial.report.figures.run import learning_rate

    if not plan.state.stages:
        raise InputError(
            str(picture), "", "there is no stage to draw", "land or name a corpus",
            code="nothing-landed",
        )  # fmt: skip
    branch = {}
    release = plan.release
    if release is not None:
        stride = max(1, release.steps // _CURVE_POINTS)
        last = release.start_step + release.steps - 1
        steps = [*range(release.start_step, last, stride), last]
        branch = {"release": [(step, release.eta(step)) for step in steps]}
    picture.write_bytes(learning_rate(plan.rates, branch).png())


def plot_run(work: Workspace, figure: str) -> Axes:
    """Draw a figure of a run; see `Run.plot`."""
    from perennial.report.figures.run import pictures
    from perennial.runs.history import read_history

    spec, state = work.spec, work.ledger.read()
    length = spec.corpora.sequence_length
    history = read_history(work.store, state, length)
    return _axes(work.where, figure, pictures(state, length, history))


def plot_comparison(where: str, comparison: Comparison, figure: str) -> Axes:
    """Draw a figure of a comparison; see `Run.plot_comparison`."""
    from perennial.report.compare_page import page

    sections = page(comparison, now()).sections
    drawn = {s.title.lower().replace(" ", "-"): s.picture for s in sections}
    return _axes(where, figure, {name: its for name, its in drawn.items() if its is not None})


def plot_search(result: SearchResult) -> Axes:
    """Draw a search; see `Run.plot_search`."""
    from perennial.report.figures.pareto import pareto

    return _axes(result.search, "front", {"front": pareto(result)})


def _axes(where: str, figure: str, drawn: Mapping[str, Picture]) -> Axes:
    """Return the axes of a figure, which becomes pyplot's current one."""
    if figure not in drawn:
        raise InputError(
            where, "figure", f"there is no figure {figure!r} of this run",
            f"its figures: {', '.join(drawn)}" if drawn else "train and evaluate a stage first",
            code="figure-missing",
        )  # fmt: skip
    from matplotlib import pyplot

    made = drawn[figure].figure()
    pyplot.figure(made)
    return made.axes[0]
