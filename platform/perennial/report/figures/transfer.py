"""Draw what each stage learned and what was forgotten, in two panels with their own scales."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.ticker import MaxNLocator

from perennial.report.figures.style import (
    COLOURS,
    CROWD,
    grey,
    named_places,
    narrow,
    panels,
    paper,
    picture,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from perennial.evaluation.matrix import LossMatrix

_LEARNED, _FORGOTTEN = COLOURS[0], COLOURS[1]
_LONG_LABEL = 16
_LEAST_INCHES = 2.6


class Bar(NamedTuple):
    """A change of loss in nats per token by a stage on a corpus, above 0 in the panel's sense."""

    stage: str
    corpus: str
    nats: float
    stderr: float | None = None


def learned(matrix: LossMatrix) -> list[Bar]:
    """Return by how much each stage lowered the loss on its own corpora. Pure."""
    bars = []
    for i in matrix.shown:
        name, losses = matrix.stages[i]
        before = matrix.stages[i - 1][1] if i else matrix.base
        bars += [
            Bar(name, corpus, before[corpus].nats_per_token - losses[corpus].nats_per_token)
            for corpus in matrix.own(i)
            if corpus in before and corpus in losses
        ]
    return bars


def forgotten(matrix: LossMatrix) -> list[Bar]:
    """Return by how much the loss on every other corpus rose since its own stage or base. Pure."""
    bars = []
    for i in matrix.shown:
        name, losses = matrix.stages[i]
        bars += [
            Bar(name, corpus, nats, losses[corpus].stderr_of_change)
            for corpus, nats in matrix.forgetting(i).items()
            if nats is not None
        ]
    return bars


@picture
def learned_and_forgotten(matrix: LossMatrix) -> Figure:
    """Draw the fall of loss on each stage's own corpora, and the rise on every other one.

    Forgetting has two standard errors, over documents paired with themselves. Expects at least two
    stages, or a base.
    """
    drawn = [
        (bars, title, colour, hatch)
        for bars, title, colour, hatch in (
            (learned(matrix), "Learned: fall on its own corpus", _LEARNED, ""),
            (forgotten(matrix), "Forgotten: rise on the others", _FORGOTTEN, "\\\\"),
        )
        if bars
    ]
    crowded = max((len(bars) for bars, *_ in drawn), default=0) > CROWD
    heights = [
        3.4 if crowded else max(_LEAST_INCHES, 1.4 + 0.4 * len(bars)) for bars, *_ in drawn
    ] or [2.0]
    figure, axes_of_panels = panels(heights)
    for axes, (bars, title, colour, hatch) in zip(axes_of_panels, drawn, strict=False):
        axes.set_title(title, fontsize=10)
        if crowded:
            _draw_crowd(axes, bars, colour)
        else:
            _draw_bars(axes, bars, colour, hatch)
    return figure


def _draw_bars(axes: Axes, bars: Sequence[Bar], colour: str, hatch: str) -> None:
    for y, bar in enumerate(bars):
        axes.barh(
            y,
            bar.nats,
            height=0.6,
            color=colour,
            hatch=hatch,
            edgecolor=paper(),
            xerr=None if bar.stderr is None else 2 * bar.stderr,
            ecolor=grey(),
            capsize=3,
        )
        reach = bar.nats + (1 if bar.nats >= 0 else -1) * 2 * (bar.stderr or 0.0)
        axes.annotate(
            f"{bar.nats:+.3f}",
            (reach, y),
            (6 if bar.nats >= 0 else -6, 0),
            textcoords="offset points",
            va="center",
            ha="left" if bar.nats >= 0 else "right",
            fontsize=9,
        )
    axes.axvline(0, color=grey(), linewidth=1)
    axes.set_yticks(range(len(bars)), [_label(bar) for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.margins(x=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("nats per token")


def _label(bar: Bar) -> str:
    one_line = f"{bar.stage}: {bar.corpus}"
    return one_line if len(one_line) <= _LONG_LABEL else f"{bar.stage}:\n{bar.corpus}"


def _draw_crowd(axes: Axes, bars: Sequence[Bar], colour: str) -> None:
    """Draw the mean of each stage's bars over the stages, and their lowest and highest."""
    by_stage: dict[str, list[float]] = {}
    for bar in bars:
        by_stage.setdefault(bar.stage, []).append(bar.nats)
    groups = list(by_stage.values())
    places = range(len(groups))
    axes.fill_between(
        places, [min(g) for g in groups], [max(g) for g in groups], color=colour, alpha=0.3, lw=0
    )
    axes.plot(places, [fmean(group) for group in groups], color=colour, linewidth=1.5)
    axes.axhline(0, color=grey(), linewidth=1)
    named, names = named_places(list(by_stage))
    stride = 2 if narrow() else 3
    axes.set_xticks(named[::stride], names[::stride], rotation=20, ha="right", fontsize=8)
    axes.set_ylabel("nats per token; band: lowest, highest" if narrow() else "nats per token")
