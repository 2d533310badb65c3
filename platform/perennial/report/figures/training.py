"""Pictures of how training went: its loss over tokens, and where its time went."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING

from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from perennial.report.figures.style import (
    COLOURS,
    CROWD,
    Picture,
    accent,
    axes_of,
    broken,
    grey,
    legend_below,
    name_spans,
    named_places,
    narrow,
    paper,
    picture,
)
from perennial.runs.history import CurvePoint, StageTime

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 240
_PARTS = {
    "computing": (("forward", "backward", "optimizer"), COLOURS[0], ""),
    "communication": (("communication",), COLOURS[4], "||"),
    "data": (("data",), COLOURS[1], "///"),
    "checkpoint": (("checkpoint",), COLOURS[2], "xx"),
    "other": (("other",), COLOURS[3], "--"),
}
"""Label, parts of a step, colour and hatch of each piece of a bar."""


def train_loss(points: Sequence[CurvePoint]) -> Picture:
    """Return the picture of the training loss over the trunk's tokens."""
    return metric_curve(points, "training nats per token", "Training loss over the whole run")


@picture
def metric_curve(points: Sequence[CurvePoint], label: str, title: str) -> Figure:
    """Draw a metric over the trunk's tokens: means of equal intervals, and their lows and highs.

    Args:
        points: the metric's values in the order of the trunk; at least one.
        label: of the vertical axis, with the unit.
        title: of the picture.
    """
    figure, axes = axes_of(4.2)
    width = max(1, (points[-1].tokens - points[0].tokens) // _BINS)
    starts: dict[str, float] = {}
    stages = [list(of_stage) for _, of_stage in groupby(points, key=lambda point: point.stage)]
    for in_order in stages:
        starts[in_order[0].stage] = in_order[0].tokens if starts else 0
    # A curve of its own for each of a crowd would be a page of a megabyte.
    for in_order in stages if len(stages) <= CROWD else [list(points)]:
        bins = [list(group) for _, group in groupby(in_order, key=lambda p: p.tokens // width)]
        xs = [fmean(point.tokens for point in group) for group in bins]
        values = [[point.value for point in group] for group in bins]
        tint = COLOURS[0]
        lows, highs = [min(group) for group in values], [max(group) for group in values]
        axes.fill_between(xs, lows, highs, color=tint, alpha=0.25, linewidth=0)
        axes.plot(xs, [fmean(group) for group in values], color=tint, linewidth=1.5)
    axes.set_xlim(0, points[-1].tokens * 1.03)
    name_spans(axes, list(starts), list(starts.values()), points[-1].tokens)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_xlabel("tokens that the trunk was trained on")
    axes.set_ylabel(label)
    axes.set_title(title)
    return figure


@picture
def time_spent(times: Sequence[StageTime]) -> Figure:
    """Draw how each stage's time was spent, from the decision to begin to its last checkpoint."""
    if len(times) > CROWD:
        return _time_of_a_crowd(times)
    figure, axes = axes_of(2.3 + 0.5 * len(times))
    for y, time in enumerate(times):
        left = 0.0
        for parts, tint, hatch in _PARTS.values():
            seconds = sum(time.parts.get(part, 0.0) for part in parts)
            axes.barh(
                y, seconds, left=left, height=0.62, color=tint, hatch=hatch, edgecolor=paper()
            )
            left += seconds
        outside = max(0.0, (time.whole or left) - left)
        axes.barh(y, outside, left=left, height=0.62, color=paper(), edgecolor=grey(), hatch="\\")
        note = "" if time.goodput is None else f"{time.goodput:.0%}"
        if time.restarts:
            note += f", {time.restarts} restart{'s' if time.restarts > 1 else ''}"
        axes.annotate(
            note,
            (left + outside, y),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=accent() if time.restarts else None,
        )
    axes.set_yticks(range(len(times)), [broken(time.stage) for time in times])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.margins(x=0.3 if narrow() else 0.16)
    axes.set_xlim(0, None)
    axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4 if narrow() else 6))
    axes.set_xlabel("from the decision to begin to the last checkpoint")
    axes.set_title("Where the time went (goodput: the share in steps that count)")
    handles = [
        Patch(facecolor=tint, edgecolor=paper(), hatch=hatch, label=label)
        for label, (_, tint, hatch) in _PARTS.items()
    ]
    outside_steps = "starts, repeats and waiting"
    handles.append(Patch(facecolor=paper(), edgecolor=grey(), hatch="\\", label=outside_steps))
    legend_below(axes, 3, handles=handles)
    return figure


def _time_of_a_crowd(times: Sequence[StageTime]) -> Figure:
    """Draw the seconds of a stage over the stages, the parts of a step on each other.

    Of so many that they would be thinner than a line, it draws means of equally many.
    """
    figure, axes = axes_of(4.4)
    size = -(-len(times) // _BINS)
    groups = [times[first : first + size] for first in range(0, len(times), size)]
    places = [(first * size + (len(group) - 1) / 2) for first, group in enumerate(groups)]
    below = [0.0] * len(groups)
    for label, (parts, tint, _) in _PARTS.items():
        seconds = [
            fmean(sum(time.parts.get(part, 0.0) for part in parts) for time in group)
            for group in groups
        ]
        above = [low + more for low, more in zip(below, seconds, strict=True)]
        axes.fill_between(places, below, above, color=tint, step="mid", linewidth=0, label=label)
        below = above
    whole = [
        max(fmean(time.whole or 0.0 for time in group), low)
        for group, low in zip(groups, below, strict=True)
    ]
    axes.fill_between(
        places, below, whole, color="#999999", step="mid", linewidth=0,
        label="starts, repeats and waiting",
    )  # fmt: skip
    named, names = named_places([time.stage for time in times])
    axes.set_xticks(named, names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(times) - 0.5)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(EngFormatter(unit="s"))
    axes.set_ylabel("from the decision to the last checkpoint")
    axes.set_title("Where the time went")
    legend_below(axes, 3)
    return figure
