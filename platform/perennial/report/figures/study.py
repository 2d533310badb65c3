"""Pictures of a study: what its contenders came to, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from perennial.report.figures.style import (
    MARKERS,
    axes_of,
    broken,
    colour,
    grey,
    legend_below,
    narrow,
    picture,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from perennial.evaluation.statistics import Estimate


@picture
def contender_losses(
    losses: Mapping[str, Mapping[str, Estimate]], columns: Sequence[str], unit: str
) -> Figure:
    """Draw the mean loss of every contender on every corpus, with the interval over seeds.

    Args:
        losses: by contender and column.
        columns: the corpora, and their average.
        unit: of the losses.
    """
    figure, axes = axes_of(1.4 + (0.16 * len(losses) + 0.3) * len(columns) + 0.2 * len(losses))
    for i, (name, its) in enumerate(losses.items()):
        shift = 0.62 * ((i + 0.5) / len(losses) - 0.5)
        places = [(y + shift, its[column]) for y, column in enumerate(columns) if column in its]
        axes.errorbar(
            [value.mean for _, value in places],
            [y for y, _ in places],
            xerr=[value.half_width or 0.0 for _, value in places],
            linestyle="",
            color=colour(i),
            marker=MARKERS[i % len(MARKERS)],
            markersize=6,
            capsize=2,
            elinewidth=1,
            label=broken(name),
        )
    for y in range(1, len(columns)):
        axes.axhline(y - 0.5, color=grey(), linewidth=0.5)
    axes.set_yticks(range(len(columns)), columns)
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"held-out {unit}, lower is better")
    axes.set_title("Held-out loss, mean and 95% interval over seeds")
    legend_below(axes, 1 if narrow() else 3)
    return figure


@picture
def claim_intervals(
    claims: Sequence[tuple[str, Estimate, tuple[float, float], str]],
) -> Figure:
    """Draw what was measured for every claim beside its bounds.

    Args:
        claims: label, measurement, bounds (infinite for none) and verdict of each.
    """
    figure, axes = axes_of(1.5 + 0.5 * len(claims))
    for y, (_, measured, bounds, verdict) in enumerate(claims):
        index = ("holds", "does not hold", "not decided").index(verdict)
        axes.errorbar(
            [measured.mean],
            [y],
            xerr=[measured.half_width or 0.0],
            linestyle="",
            color=colour((2, 5, 7)[index]),
            marker=MARKERS[index],
            markersize=7,
            capsize=3,
        )
        for bound in bounds:
            if abs(bound) != float("inf"):
                axes.plot([bound, bound], [y - 0.35, y + 0.35], color=grey(), linewidth=2)
        # A bound may stand behind the words.
        behind = {"facecolor": axes.get_facecolor(), "edgecolor": "none", "pad": 1.0}
        axes.annotate(
            verdict,
            (measured.mean, y),
            (0, 7),
            textcoords="offset points",
            ha="center",
            bbox=behind,
        )
    axes.set_yticks(range(len(claims)), [broken(label) for label, *_ in claims])
    axes.set_ylim(len(claims) - 0.4, -0.7)
    axes.grid(False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlabel("measured, with the 95% interval; upright lines are bounds")
    axes.set_title("Claims")
    return figure
