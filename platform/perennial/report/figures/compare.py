"""Pictures of several runs side by side: their losses, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from perennial.evaluation.compare import Bill, Model, average
from perennial.evaluation.seeds import SeededModel, mean_losses
from perennial.report.figures.style import (
    COLOURS,
    MARKERS,
    axes_of,
    colour,
    grey,
    legend_below,
    narrow,
    paper,
    picture,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@picture
def losses_by_corpus(
    models: Sequence[SeededModel], corpora: Sequence[str], in_nats: bool
) -> Figure:
    """Draw the loss of a model of each run on every corpus and on average, with its error.

    The error is the 95% interval over seeds, or where every run stands alone two standard errors
    over documents.
    """
    rows = [*corpora, *(["average"] if len(corpora) > 1 else [])]
    figure, axes = axes_of(1.4 + (0.14 * len(models) + 0.3) * len(rows) + 0.2 * len(models))
    alone = all(model.seeds == 1 for model in models)
    for i, model in enumerate(models):
        means = mean_losses(model, corpora, in_nats)
        if means is None:
            continue
        shown = [*means.corpora.values(), means.average][: len(rows)]
        errors = [mean.half_width or 0.0 for mean in shown]
        if alone and in_nats:  # an error in nats per token says nothing of one in bits per byte
            its = model.first.losses
            documents = [2 * (its[corpus].stderr_nats_per_token or 0.0) for corpus in corpora]
            errors[: len(corpora)] = documents
        shift = 0.62 * ((i + 0.5) / len(models) - 0.5)
        tokens = EngFormatter(sep="", places=2)(model.first.tokens)
        axes.errorbar(
            [mean.mean for mean in shown],
            [y + shift for y in range(len(rows))],
            xerr=errors,
            linestyle="",
            color=colour(i),
            marker=MARKERS[i % len(MARKERS)],
            markersize=7,
            capsize=2,
            elinewidth=1,
            label=f"{model.arm}, {tokens} tokens" + ("" if alone else f", seeds: {model.seeds}"),
        )
    for y in range(1, len(rows)):
        axes.axhline(y - 0.5, color=grey(), linewidth=0.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(False, axis="y")
    _label_loss(axes, in_nats, along="x")
    axes.set_title("Held-out loss of the last models")
    legend_below(axes, 1 if narrow() else 2)
    return figure


@picture
def average_over_tokens(
    arms: Sequence[tuple[str, Sequence[Sequence[Model]]]], corpora: Sequence[str], in_nats: bool
) -> Figure:
    """Average loss of every measured model over what it cost; filled where the rate was annealed.

    arms: a name, and of each of its runs the models in order of their tokens.
    """
    figure, axes = axes_of(4.6)
    for i, (name, runs) in enumerate(arms):
        look: dict[str, Any] = {"color": colour(i), "marker": MARKERS[i % len(MARKERS)]}
        look["markersize"] = 8
        for models in runs:
            points = [
                (model.tokens, mean, model.decayed)
                for model in models
                if (mean := average(model, corpora, in_nats)) is not None
            ]
            axes.plot(
                [p[0] for p in points], [p[1] for p in points], linewidth=1.5, color=colour(i)
            )
            for tokens, mean, decayed in points:
                face = colour(i) if decayed else paper()
                axes.plot(tokens, mean, **look, markerfacecolor=face)
        axes.plot([], [], **look, linewidth=1.5, label=name)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_xlim(0, None)
    axes.set_xlabel("tokens trained (filled: annealed)")
    _label_loss(axes, in_nats, along="y")
    axes.set_title("Average held-out loss over all corpora")
    legend_below(axes, 3)
    return figure


def _label_loss(axes: Axes, in_nats: bool, along: str) -> None:
    unit = "nats per token" if in_nats else "bits per byte"
    axes.set(**{f"{along}label": f"held-out {unit}, lower is better"})


@picture
def compute_bars(bill: Bill) -> Figure:
    """Draw the cost of each arrival beside that of retraining on everything so far."""
    arrivals = bill.arrivals
    figure, axes = axes_of(1.9 + 0.62 * len(arrivals))
    for y, arrival in enumerate(arrivals):
        share = 1 - arrival.tokens / arrival.retrained_tokens
        for offset, tokens, tint, hatch in (
            (-0.2, arrival.tokens, COLOURS[0], ""),
            (0.2, arrival.retrained_tokens, COLOURS[1], "///"),
        ):
            axes.barh(y + offset, tokens, height=0.36, color=tint, hatch=hatch, edgecolor=paper())
        label = f"{share:.0%} saved" if share else "the same"
        axes.annotate(
            label,
            (arrival.retrained_tokens, y),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(arrivals)), [arrival.stage for arrival in arrivals])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.margins(x=0.3 if narrow() else 0.16)
    axes.set_xlim(0, None)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("tokens")
    axes.set_title("What each arrival cost")
    handles = [
        Patch(facecolor=COLOURS[0], label="going on from the trunk"),
        Patch(
            facecolor=COLOURS[1],
            edgecolor=paper(),
            hatch="///",
            label="retraining from scratch on everything so far",
        ),
    ]
    legend_below(axes, 1 if narrow() else 2, handles=handles)
    return figure
