"""Pictures of a run: losses, learning rate, tokens, what was learned and what was forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from perennial.evaluation.matrix import LossMatrix
from perennial.report.figures import training
from perennial.report.figures.heat_map import loss_heat_map
from perennial.report.figures.style import (
    COLOURS,
    CROWD,
    MARKERS,
    Picture,
    accent,
    axes_of,
    broken,
    colour,
    legend_below,
    name_spans,
    named_places,
    narrow,
    paper,
    picture,
)
from perennial.report.figures.transfer import learned_and_forgotten
from perennial.runs.history import History
from perennial.runs.state import RunState
from perennial.runs.summary import (
    SHOWN_STAGES,
    RatePoint,
    StageTokens,
    matrix,
    rate_points,
    stage_tokens,
    tokens_until,
)
from perennial.schedules import from_dict
from perennial.training.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from perennial.runs.state import Stage

PHASES = {"warmup": "#D55E00", "cooldown": "#E69F00", "constant": "#56B4E9", "anneal": "#7F7F7F"}
PHASE_ALPHA = 0.18


@picture
def loss_lines(matrix: LossMatrix, stages: Sequence[StageTokens], before: int = 0) -> Figure:
    """Draw held-out loss on each corpus over the trunk's tokens, with two standard errors.

    stages: tokens of the matrix's stages that are shown, in order.
    before: tokens of the stages before them.
    """
    figure, axes = axes_of(4.4)
    ends = list(accumulate((stage.total for stage in stages), initial=before))[1:]
    if len(matrix.corpora) > CROWD:
        _draw_summary(axes, matrix, ends)
    else:
        _draw_each(axes, matrix, ends)
    axes.set_xlim(before, ends[-1] + (ends[-1] - before) * 0.04)
    name_spans(axes, [s.stage for s in stages], [before, *ends[:-1]], ends[-1])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("tokens that the trunk was trained on")
    axes.set_ylabel("held-out nats per token")
    part = f"last {len(stages)} stages" if before else "whole run"
    axes.set_title(f"Held-out loss over the {part}")
    legend_below(axes, 5)
    return figure


def _draw_each(axes: Axes, matrix: LossMatrix, ends: Sequence[int]) -> None:
    shown = (row for _, row in matrix.stages[matrix.since :])
    at_start = [] if matrix.since else [(0, matrix.base)]
    measured_at = [*at_start, *zip(ends, shown, strict=True)]
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


def _draw_summary(axes: Axes, matrix: LossMatrix, ends: Sequence[int]) -> None:
    """Draw the losses of a crowd of corpora: each stage's own, and the mean of all before it."""
    places = list(zip(matrix.shown, ends, strict=True))
    own = [(x, matrix.adaptation(i)) for i, x in places]
    earlier = []
    for i, x in places:
        before = frozenset(matrix.before(i))
        losses = matrix.stages[i][1].items()
        known = [loss.nats_per_token for corpus, loss in losses if corpus in before]
        if known:
            earlier.append((x, fmean(known), min(known), max(known)))
    if earlier:
        xs, means, lows, highs = zip(*earlier, strict=True)
        axes.fill_between(xs, lows, highs, color=COLOURS[1], alpha=0.25, linewidth=0)
        label = "earlier corpora: mean, lowest and highest"
        axes.plot(xs, means, color=COLOURS[1], linewidth=2, linestyle="--", label=label)
    known_own = [(x, nats) for x, nats in own if nats is not None]
    axes.plot(*zip(*known_own, strict=True), color=COLOURS[0], linewidth=2, label="own corpus")


@picture
def learning_rate(
    trunk: Sequence[RatePoint], releases: Mapping[str, Sequence[tuple[int, float]]] | None = None
) -> Figure:
    """The learning rate over a run, or its last stages.

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
    part = "last stages" if trunk[0].step else "whole run"
    axes.set_title(f"Learning rate over the {part}")
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
    if len(stages) > CROWD:
        return _tokens_of_a_crowd(stages)
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


def _tokens_of_a_crowd(stages: Sequence[StageTokens]) -> Figure:
    """Draw new and replayed tokens over the stages, all corpora together."""
    figure, axes = axes_of(4.2)
    new = [sum(stage.new.values()) for stage in stages]
    places = range(len(stages))
    total = [stage.total for stage in stages]
    axes.fill_between(places, new, color=COLOURS[0], step="mid", linewidth=0, label="new")
    axes.fill_between(
        places, new, total, color="#999999", step="mid", linewidth=0, hatch="///",
        edgecolor=paper(), label="replayed",
    )  # fmt: skip
    named, names = named_places([stage.stage for stage in stages])
    axes.set_xticks(named, names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel("tokens of a stage")
    axes.set_title("Tokens by source")
    legend_below(axes, 2)
    return figure


def pictures(state: RunState, sequence_length: int, history: History) -> dict[str, Picture]:
    """Pictures of the run by name; none before the first stage was evaluated."""
    losses_by_stage = matrix(state, SHOWN_STAGES)
    if not any(losses for _, losses in losses_by_stage.stages):
        return {}
    recent = state.stages[-SHOWN_STAGES:]
    sources = stage_tokens(state, sequence_length, SHOWN_STAGES)
    before = tokens_until(state, recent[0], recent[0].first_step, sequence_length)
    measured = {name for name, _ in losses_by_stage.stages[losses_by_stage.since :]}
    figures = {
        "matrix": loss_heat_map(
            losses_by_stage, {name: branch.stage for name, branch in state.branches.items()}
        ),
        "losses": loss_lines(
            losses_by_stage, [its for its in sources if its.stage in measured], before
        ),
        "learning-rate": learning_rate(rate_points(recent), _branches(state, recent[0])),
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


def _branches(state: RunState, since: Stage) -> dict[str, list[tuple[int, float]]]:
    """(step, eta) of every release that was annealed since a stage began, by name."""
    branches = {}
    for release in state.releases:
        if release.steps and state.branches[release.name].step >= since.first_step:
            anneal = from_dict(release.schedule)
            first = state.branches[release.name].step
            steps = range(first, first + release.steps)
            branches[release.name] = [(step, anneal.eta(step)) for step in steps]
    return branches
