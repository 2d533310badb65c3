"""Draw a search: what trials learned against what they lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perennial.report.figures.style import (
    COLOURS,
    accent,
    axes_of,
    grey,
    legend_below,
    narrow,
    paper,
    picture,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from perennial.config.search import Point
    from perennial.search.results import Advice, PredictedPoint, SearchResult, SearchTrial

_FEW = 6
"""Points of a front that are all labelled; of a larger one, only those that are advised."""


@picture
def pareto(result: SearchResult) -> Figure:
    """Trials by their two objectives, less of both being better, with their front and the advice.

    Bars are 95% intervals over documents;
    the dotted line is the front that the fitted law predicts, with one standard error.
    """
    figure, axes = axes_of(4.8)
    trials, front = result.trials, result.front
    if result.law is not None:
        _draw_law(axes, result.law.front)
    _draw_trials(axes, trials, front)
    advised = _advised(result.advice)
    labelled = set(advised) | (set(front) if len(front) <= _FEW else set())
    for i in sorted(labelled):
        _label(axes, trials, i, advised.get(i, []))
    axes.margins(x=0.16, y=0.2)
    first, second = result.objectives
    axes.set_xlabel(f"{_named(first, result.corpus)}, nats per token")
    axes.set_ylabel(f"{_named(second, result.corpus)},\nnats per token")
    axes.set_title("What was learned against what was lost: down and left is better")
    legend_below(axes, 4)
    return figure


def _draw_trials(axes: Axes, trials: Sequence[SearchTrial], front: Sequence[int]) -> None:
    finished = [i for i, trial in enumerate(trials) if trial.finished]
    beaten = [i for i in finished if i not in front]
    stopped = [i for i in range(len(trials)) if i not in finished]
    hollow = {"color": accent(), "markerfacecolor": paper(), "linestyle": ""}
    looks: list[tuple[Sequence[int], str, dict[str, Any]]] = [
        (stopped, "stopped early", {"marker": "x", "color": grey(), "linestyle": ""}),
        (beaten, "beaten", {"marker": "s", **hollow}),
        (front, "front", {"marker": "o", "color": COLOURS[0], "linestyle": "--"}),
    ]
    for chosen, label, look in looks:
        if not chosen:
            continue
        xs, ys = zip(*(trials[i].values for i in chosen), strict=True)
        if label != "stopped early":
            axes.errorbar(
                xs,
                ys,
                xerr=_bars(trials, chosen, 0),
                yerr=_bars(trials, chosen, 1),
                fmt="none",
                ecolor=look["color"],
                alpha=0.45,
                linewidth=1,
            )
        axes.plot(xs, ys, label=label, markersize=8, markeredgewidth=1.6, **look)


def _bars(trials: Sequence[SearchTrial], chosen: Sequence[int], k: int) -> list[list[float]]:
    """Return the lengths of the bars below and above each point."""
    below, above = [], []
    for trial in (trials[i] for i in chosen):
        # Every finished trial has an interval; without one its bar has no length.
        low, high = trial.low or trial.values, trial.high or trial.values
        below.append(max(0.0, trial.values[k] - low[k]))
        above.append(max(0.0, high[k] - trial.values[k]))
    return [below, above]


def _draw_law(axes: Axes, predicted: Sequence[PredictedPoint]) -> None:
    if not predicted:
        return
    xs, ys = zip(*(point.values for point in predicted), strict=True)
    axes.plot(xs, ys, linestyle=":", color=COLOURS[2], linewidth=2, label="predicted front")
    errors = [point.errors[1] for point in predicted]
    low = [y - error for y, error in zip(ys, errors, strict=True)]
    high = [y + error for y, error in zip(ys, errors, strict=True)]
    axes.fill_between(xs, low, high, color=COLOURS[2], alpha=0.15, linewidth=0)


def _advised(advice: Sequence[Advice]) -> dict[int, list[str]]:
    """Return the tastes by the trial that is advised for them."""
    tastes: dict[int, list[str]] = {}
    for item in advice:
        tastes.setdefault(item.trial, []).append(item.taste.replace("-", " "))
    return tastes


def _label(axes: Axes, trials: Sequence[SearchTrial], i: int, tastes: Sequence[str]) -> None:
    place = trials[i].values
    xs = [trial.values[0] for trial in trials if trial.finished]
    right = place[0] > (min(xs) + max(xs)) / 2
    title = f"{', '.join(tastes)}:\n" if tastes else ""
    axes.annotate(
        title + _point(trials[i].point),
        place,
        (-8 if right else 8, 8),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=8 if narrow() else 9,
        fontweight="bold" if tastes else "normal",
    )


def _point(point: Point) -> str:
    text = f"eta {point.eta:.3g}, replay {point.replay:.3g}"
    return text + (f", anneal {point.anneal}" if point.anneal else "")


def _named(objective: str, corpus: str) -> str:
    kind, _, one = objective.partition("/")
    if kind == "adaptation":
        return f"loss on {corpus} (adaptation)"
    return f"forgetting of {one or 'earlier corpora'}"
