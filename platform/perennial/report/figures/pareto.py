"""The picture of a search: what trials learned against what they lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

_FEW = 6
"""Points of a front that are all labelled; of a larger one, only those that are advised."""


@picture
def pareto(found: Mapping[str, Any]) -> Figure:
    """Trials by their two objectives, less of both being better, with their front and the advice.

    found: a search's result (`perennial.search.results`). Bars are 95% intervals over documents;
    the dotted line is the front that the fitted law predicts, with one standard error.
    """
    figure, axes = axes_of(4.8)
    trials, front = found["trials"], found["front"]
    if found["law"]:
        _draw_law(axes, found["law"]["front"])
    _draw_trials(axes, trials, front)
    advised = _advised(found["advice"])
    labelled = set(advised) | (set(front) if len(front) <= _FEW else set())
    for i in sorted(labelled):
        _label(axes, trials, i, advised.get(i, []))
    axes.margins(x=0.16, y=0.2)
    first, second = found["objectives"]
    axes.set_xlabel(f"{_named(first, found['corpus'])}, nats per token")
    axes.set_ylabel(f"{_named(second, found['corpus'])},\nnats per token")
    axes.set_title("What was learned against what was lost: down and left is better")
    legend_below(axes, 4)
    return figure


def _draw_trials(axes: Axes, trials: Sequence[Mapping[str, Any]], front: Sequence[int]) -> None:
    finished = [i for i, trial in enumerate(trials) if trial["finished"]]
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
        xs, ys = zip(*(trials[i]["values"] for i in chosen), strict=True)
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


def _bars(trials: Sequence[Mapping[str, Any]], chosen: Sequence[int], k: int) -> list[list[float]]:
    """Lengths below and above each point."""
    told = [(trials[i]["values"][k], trials[i]["low"][k], trials[i]["high"][k]) for i in chosen]
    below = [max(0.0, value - low) for value, low, _ in told]
    return [below, [max(0.0, high - value) for value, _, high in told]]


def _draw_law(axes: Axes, predicted: Sequence[Mapping[str, Any]]) -> None:
    if not predicted:
        return
    xs, ys = zip(*(each["values"] for each in predicted), strict=True)
    axes.plot(xs, ys, linestyle=":", color=COLOURS[2], linewidth=2, label="predicted front")
    errors = [each["errors"][1] for each in predicted]
    low = [y - error for y, error in zip(ys, errors, strict=True)]
    high = [y + error for y, error in zip(ys, errors, strict=True)]
    axes.fill_between(xs, low, high, color=COLOURS[2], alpha=0.15, linewidth=0)


def _advised(advice: Sequence[Mapping[str, Any]]) -> dict[int, list[str]]:
    """Tastes by the trial that they are advised."""
    tastes: dict[int, list[str]] = {}
    for each in advice:
        tastes.setdefault(each["trial"], []).append(each["taste"].replace("-", " "))
    return tastes


def _label(axes: Axes, trials: Sequence[Mapping[str, Any]], i: int, tastes: Sequence[str]) -> None:
    place = trials[i]["values"]
    xs = [trial["values"][0] for trial in trials if trial["finished"]]
    right = place[0] > (min(xs) + max(xs)) / 2
    told = f"{', '.join(tastes)}:\n" if tastes else ""
    axes.annotate(
        told + _point(trials[i]["point"]),
        place,
        (-8 if right else 8, 8),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=8 if narrow() else 9,
        fontweight="bold" if tastes else "normal",
    )


def _point(point: Mapping[str, Any]) -> str:
    told = f"eta {point['eta']:.3g}, replay {point['replay']:.3g}"
    return told + (f", anneal {point['anneal']}" if point["anneal"] else "")


def _named(objective: str, corpus: str) -> str:
    kind, _, one = objective.partition("/")
    if kind == "adaptation":
        return f"loss on {corpus} (adaptation)"
    return f"forgetting of {one or 'earlier corpora'}"
