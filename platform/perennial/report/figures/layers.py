"""Draw an Inheritune search: held-out loss over the number of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perennial.report.figures.style import COLOURS, accent, axes_of, grey, legend_below, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from perennial.search.layer_results import ChildResult, LayerSearchResult


@picture
def layers(result: LayerSearchResult) -> Figure:
    """Loss of children by their layers, beside the reference's and that of random weights.

    Bars are 95% intervals of the difference from the reference, over documents and seeds.
    """
    figure, axes = axes_of(4.2)
    reference = result.reference
    axes.axhline(reference.loss, color=grey(), linestyle="--", linewidth=1.4)
    axes.annotate(
        f"reference, {reference.layers} layers: {reference.loss:.3f}",
        (1.0, reference.loss),
        (-2, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    searched = [child for child in result.children if child.init != "random"]
    twins = [child for child in result.children if child.init == "random"]
    grown = any(child.init == "grown" for child in searched)
    _draw(axes, searched, "grown" if grown else "inherited", COLOURS[0], "o", -0.04)
    _draw(axes, twins, "random weights", accent(), "s", 0.04)
    if result.smallest is not None:
        child = result.children[result.smallest]
        axes.plot(
            [child.layers - 0.04], [child.loss], marker="o", markersize=17, color=COLOURS[0],
            markerfacecolor="none", markeredgewidth=1.6, linestyle="", label="smallest at parity",
        )  # fmt: skip
    axes.set_xticks(sorted({child.layers for child in result.children}))
    axes.margins(x=0.2, y=0.2)
    axes.set_xlabel("layers")
    axes.set_ylabel(f"held-out loss on {' and '.join(reference.corpora)},\nnats per token")
    axes.set_title("How few layers keep the loss: at or below the dashed line")
    legend_below(axes, 3)
    return figure


def _draw(
    axes: Axes, children: Sequence[ChildResult], label: str, colour: str, marker: str, aside: float
) -> None:
    if not children:
        return
    axes.errorbar(
        [child.layers + aside for child in children],
        [child.loss for child in children],
        # An interval of the bootstrap may leave the measured value outside.
        yerr=[
            [max(0.0, child.above - child.low) for child in children],
            [max(0.0, child.high - child.above) for child in children],
        ],
        marker=marker,
        color=colour,
        markersize=7,
        linewidth=1.4,
        capsize=3,
        label=label,
    )
