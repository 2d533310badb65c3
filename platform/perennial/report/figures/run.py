"""Pictures of a run: losses, learning rate, tokens, what was learned and what was forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from perennial.evaluation.loss import HeldoutLoss
from perennial.evaluation.matrix import LossMatrix
from perennial.report.figures import training
from perennial.report.figures.style import (
    COLOURS,
    MARKERS,
    Picture,
    accent,
    axes_of,
    broken,
    colour,
    grey,
    legend_below,
    name_spans,
    narrow,
    paper,
    picture,
)
from perennial.runs.history import History
from perennial.runs.state import RunState
from perennial.runs.summary import RatePoint, StageTokens, matrix, rate_points, stage_tokens
from perennial.schedules import from_dict
from perennial.training.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASES = {"warmup": "#D55E00", "cooldown": "#E69F00", "constant": "#56B4E9", "anneal": "#7F7F7F"}
PHASE_ALPHA = 0.18
MANY = 5


@picture
def loss_heat_map(matrix: LossMatrix) -> Figure:
    """Held-out loss of every stage and release on every corpus, with the standard error."""
    rows, first = matrix.rows, len(matrix.origins)
    corpora = matrix.corpora
    figure, axes = axes_of(1.9 + 0.55 * max(len(rows), 2))
    values = [
        [losses[c].nats_per_token if c in losses else float("nan") for c in corpora]
        for _, losses in rows
    ]
    colours = matplotlib.colormaps["cividis_r"].with_extremes(bad=paper())
    measured = [loss.nats_per_token for _, losses in rows for loss in losses.values()]
    norm = Normalize(min(measured), max(measured))
    image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto")
    axes.grid(False)
    _name_places(axes, corpora)
    axes.set_yticks(range(len(rows)), [broken(name) for name, _ in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, (_, losses) in enumerate(rows):
        for x, corpus in enumerate(corpora):
            own = 0 <= y - first < len(matrix.stages) and corpus in matrix.own(y - first)
            text, ink = "not measured", grey()
            if corpus in losses:
                text = _value(losses[corpus], with_error=len(corpora) <= MANY)
                ink = _ink(colours(norm(losses[corpus].nats_per_token)))
            weight = "bold" if own else "normal"
            size = 8 if narrow() else 10
            axes.text(
                x, y, text, ha="center", va="center", color=ink, fontweight=weight, fontsize=size
            )
    for edge in {first, first + len(matrix.stages)} - {0, len(rows)}:
        axes.axhline(edge - 0.5, color=paper(), linewidth=4)
    axes.set_title("Held-out loss after each stage (lower is better)")
    axes.set_xlabel("held-out corpus (bold: the stage's own)")
    if not narrow():
        figure.colorbar(image, label="nats per token", pad=0.02)
    return figure


def _value(loss: HeldoutLoss, with_error: bool) -> str:
    error = loss.stderr_nats_per_token
    if not with_error or error is None:
        return f"{loss.nats_per_token:.3f}"
    between = "\n± " if narrow() else " ± "
    return f"{loss.nats_per_token:.3f}{between}{error:.3f}"


def _name_places(axes: Axes, names: Sequence[str]) -> None:
    """Name the places on the horizontal axis, aslant when there are many."""
    axes.set_xticks(range(len(names)), names)
    if len(names) > (3 if narrow() else MANY):
        axes.tick_params(axis="x", labelrotation=35)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _ink(background: tuple[float, float, float, float]) -> str:
    """Black or white, whichever is read better on a background."""
    red, green, blue, _ = background
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"


@picture
def loss_lines(matrix: LossMatrix, stages: Sequence[StageTokens]) -> Figure:
    """Draw held-out loss on each corpus over the trunk's tokens, with two standard errors.

    stages: tokens of the matrix's stages, in order.
    """
    figure, axes = axes_of(4.4)
    ends = list(accumulate(stage.total for stage in stages))
    measured_at = [(0, matrix.base), *zip(ends, (row for _, row in matrix.stages), strict=True)]
    for i, corpus in enumerate(matrix.corpora):
        measured = [(x, row[corpus]) for x, row in measured_at if corpus in row]
        if not measured:
            continue
        axes.errorbar(
            [x for x, _ in measured],
            [loss.nats_per_token for _, loss in measured],
            yerr=[2 * (loss.stderr_nats_per_token or 0.0) for _, loss in measured],
            color=colour(i),
            marker=MARKERS[i % len(MARKERS)],
            markersize=7,
            capsize=3,
            linewidth=2,
            label=corpus,
        )
    axes.set_xlim(0, ends[-1] * 1.04)
    name_spans(axes, [s.stage for s in stages], [0, *ends[:-1]], ends[-1])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("tokens that the trunk was trained on")
    axes.set_ylabel("held-out nats per token")
    axes.set_title("Held-out loss over the whole run")
    legend_below(axes, 5)
    return figure


@picture
def learning_rate(
    trunk: Sequence[RatePoint], releases: Mapping[str, Sequence[tuple[int, float]]] | None = None
) -> Figure:
    """The learning rate over the whole life of a run.

    trunk: its steps in order; they may be thinned out. releases: (step, eta) of each branch, by
    name, in the trunk's numbering.
    """
    figure, axes = axes_of(4.2)
    branches = releases or {}
    last = max([trunk[-1].step, *(branch[-1][0] for branch in branches.values())])
    handles: list[Artist] = [
        Patch(facecolor=PHASES.get(phase, paper()), alpha=2 * PHASE_ALPHA, label=phase)
        for phase in _shade(axes, trunk)
    ]
    axes.plot([p.step for p in trunk], [p.eta for p in trunk], color=COLOURS[0], linewidth=2)
    axes.set_ylim(0, None)
    axes.set_xlim(trunk[0].step, last + 0.03 * (last - trunk[0].step) if branches else last)
    starts = [(stage, next(points).step) for stage, points in groupby(trunk, lambda p: p.stage)]
    name_spans(axes, [name for name, _ in starts], [step for _, step in starts], trunk[-1].step)
    for name, branch in branches.items():
        _draw_branch(axes, name, branch)
    if branches:
        handles.append(Line2D([], [], **_release_line(), label="anneal to a release"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda eta, _: f"{eta:g}"))
    axes.set_xlabel("optimizer step of the trunk")
    axes.set_ylabel("learning rate")
    axes.set_title("Learning rate over the whole run")
    legend_below(axes, 5, handles=handles)
    return figure


def _release_line() -> dict[str, Any]:
    look = {"linewidth": 2, "linestyle": "--", "marker": "*", "markersize": 12}
    return {"color": accent(), **look}


def _draw_branch(axes: Axes, name: str, branch: Sequence[tuple[int, float]]) -> None:
    steps, etas = zip(*branch, strict=True)
    axes.plot(steps, etas, **(_release_line() | {"marker": ""}))
    axes.plot(steps[-1], etas[-1], **_release_line(), clip_on=False)
    place = (steps[-1], etas[-1])
    axes.annotate(
        name,
        place,
        (-10, 0),
        textcoords="offset points",
        color=accent(),
        ha="right",
        va="center",
        fontsize=8 if narrow() else 10,
    )


def _shade(axes: Axes, trunk: Sequence[RatePoint]) -> list[str]:
    """Shade the trunk's phases; the phases there are."""
    spans = [list(points) for _, points in groupby(trunk, key=lambda p: p.phase)]
    starts = [span[0].step for span in spans] + [trunk[-1].step]
    for span, start, stop in zip(spans, starts, starts[1:], strict=False):
        tint = PHASES.get(span[0].phase, paper())
        axes.axvspan(start, stop, color=tint, alpha=PHASE_ALPHA, linewidth=0)
    return list(dict.fromkeys(span[0].phase for span in spans))


@picture
def tokens_by_source(stages: Sequence[StageTokens]) -> Figure:
    """Draw the tokens of each stage: new ones plain, replayed ones hatched, coloured by corpus."""
    figure, axes = axes_of(2.1 + 0.5 * len(stages))
    own = [corpus for stage in stages for corpus in stage.new]
    corpora = list(dict.fromkeys([*own, *(c for stage in stages for c in stage.replayed)]))
    for y, stage in enumerate(stages):
        parts = [(c, n, "") for c, n in stage.new.items()]
        parts += [(c, n, "///") for c, n in stage.replayed.items()]
        left = 0
        for corpus, tokens, hatch in parts:
            tint = colour(corpora.index(corpus))
            axes.barh(y, tokens, left=left, height=0.62, color=tint, hatch=hatch, edgecolor=paper())
            left += tokens
        share = sum(stage.replayed.values()) / left if left else 0.0
        note = f"{share:.0%} replayed" if stage.replayed else "all new"
        axes.annotate(note, (left, y), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(stages)), [broken(stage.stage) for stage in stages])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.margins(x=0.32 if narrow() else 0.16)
    axes.set_xlim(0, None)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("tokens")
    axes.set_title("Tokens by source")
    handles = [Patch(facecolor=colour(i), label=corpus) for i, corpus in enumerate(corpora)]
    if any(stage.replayed for stage in stages):
        handles.append(Patch(facecolor="#999999", edgecolor=paper(), hatch="///", label="replayed"))
    legend_below(axes, 5, handles=handles)
    return figure


@picture
def learned_and_forgotten(matrix: LossMatrix) -> Figure:
    """Draw what each stage changed of the model before it: its own corpus, and every other one.

    Bars to the left are loss that fell, to the right loss that rose; forgetting has two standard
    errors, over documents paired with themselves. Expects at least two stages, or a base.
    """
    first = 0 if matrix.base else 1
    bars = [bar for i in range(first, len(matrix.stages)) for bar in _changes(matrix, i)]
    figure, axes = axes_of(2.2 + 0.34 * len(bars))
    for y, (_, change, error, own) in enumerate(bars):
        axes.barh(
            y,
            change,
            height=0.66,
            color=COLOURS[0] if own else COLOURS[1],
            hatch="" if own else "...",
            edgecolor=paper(),
            xerr=None if error is None else 2 * error,
            ecolor=grey(),
            capsize=3,
        )
        side = 1 if change >= 0 else -1
        offset = (side * 14, 0)
        axes.annotate(
            f"{change:+.3f}",
            (change, y),
            offset,
            textcoords="offset points",
            va="center",
            ha="left" if change >= 0 else "right",
            fontsize=9,
        )
    axes.axvline(0, color=grey(), linewidth=1)
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.margins(x=0.4 if narrow() else 0.2)
    axes.set_xlabel("change of held-out loss, nats per token")
    axes.set_title("What each stage learned and forgot")
    handles = [
        Patch(facecolor=COLOURS[0], label="own corpus, against the model before"),
        Patch(
            facecolor=COLOURS[1],
            hatch="...",
            edgecolor=paper(),
            label="other corpus, against its own stage" + (" or the base" * bool(matrix.base)),
        ),
    ]
    legend_below(axes, 1 if narrow() else 2, handles=handles)
    return figure


def _changes(matrix: LossMatrix, stage: int) -> list[tuple[str, float, float | None, bool]]:
    """Label, change, standard error and whether it is the stage's own corpus."""
    bars: list[tuple[str, float, float | None, bool]] = []
    for own in matrix.own(stage):
        before = (matrix.stages[stage - 1][1] if stage else matrix.base).get(own)
        after = matrix.nats(stage, own)
        if before is not None and after is not None:
            change = after - before.nats_per_token
            bars.append((f"{matrix.stages[stage][0]}: {own}", change, None, True))
    errors = matrix.forgetting_stderr(stage)
    for corpus, nats in matrix.forgetting(stage).items():
        if nats is not None:
            bars.append((corpus, nats, errors[corpus], False))
    return bars


def pictures(state: RunState, sequence_length: int, history: History) -> dict[str, Picture]:
    """Pictures of the run by name; none before the first stage was evaluated."""
    losses_by_stage = matrix(state)
    if not any(losses for _, losses in losses_by_stage.stages):
        return {}
    sources = stage_tokens(state, sequence_length)
    figures = {
        "matrix": loss_heat_map(losses_by_stage),
        "losses": loss_lines(losses_by_stage, sources[: len(losses_by_stage.stages)]),
        "learning-rate": learning_rate(rate_points(state.stages), _branches(state)),
        "tokens": tokens_by_source(sources),
    }
    if len(losses_by_stage.stages) > 1 or losses_by_stage.base:
        figures["transfer"] = learned_and_forgotten(losses_by_stage)
    if history.losses:
        figures["train-loss"] = training.train_loss(history.losses)
    for name, points in history.curves.items():
        metric = METRICS[name]
        figures[f"metric-{name}"] = training.metric_curve(points, metric.axis, metric.title)
    if history.times:
        figures["time"] = training.time_spent(history.times)
    return figures


def _branches(state: RunState) -> dict[str, list[tuple[int, float]]]:
    """(step, eta) of every annealed release, by name."""
    branches = {}
    for release in state.releases:
        if release.steps:
            anneal = from_dict(release.schedule)
            first = state.branches[release.name].step
            steps = range(first, first + release.steps)
            branches[release.name] = [(step, anneal.eta(step)) for step in steps]
    return branches
