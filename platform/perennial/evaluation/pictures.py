"""Pictures of a run as PNG bytes, about 900 pixels wide; the same input gives the same bytes.

Colours are Okabe and Ito's, which people with any colour vision tell apart; what a colour says, a
marker, a hatch or a label says too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

import matplotlib
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from perennial.evaluation.loss import HeldoutLoss
from perennial.evaluation.transfer import LossMatrix, corpus_of, pareto_front

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A8A00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one fewer than colours, so that pairs repeat late
PHASES = {"warmup": "#FBE3D6", "cooldown": "#FFF4CC", "constant": "#E4F1F8", "anneal": "#E9E9E9"}
GREY = "#595959"
MANY = 5
RELEASE: dict[str, Any] = {
    "color": "#B34700",
    "linewidth": 2,
    "linestyle": "--",
    "marker": "*",
    "markersize": 12,
}
WIDTH_INCHES, DPI = 7.5, 120

P = ParamSpec("P")


class RatePoint(NamedTuple):
    """The learning rate `eta` of one step of the trunk."""

    step: int
    eta: float
    phase: str
    stage: str


class StageTokens(NamedTuple):
    """Tokens that a stage trained on: new ones, and replayed ones by corpus."""

    stage: str
    new: int
    replayed: Mapping[str, int]


class Trial(NamedTuple):
    """A point in the plane of what was learned and what was lost, in nats per token."""

    label: str
    adaptation: float
    forgetting: float


def _picture(draw: Callable[P, Figure]) -> Callable[P, bytes]:
    """Give a drawing function the project's style and make it return PNG bytes."""

    @wraps(draw)
    def render(*args: P.args, **kwargs: P.kwargs) -> bytes:
        with _style():
            figure = draw(*args, **kwargs)
            out = io.BytesIO()
            figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
        return out.getvalue()

    return render


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.size": 10,
                "axes.titlesize": 12,
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "axes.titlepad": 12,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.edgecolor": GREY,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": "#E3E3E3",
                "legend.frameon": False,
                "figure.constrained_layout.use": True,
            }
        )
        yield


def _axes(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height_inches))
    return figure, figure.add_subplot()


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


@_picture
def loss_heat_map(matrix: LossMatrix) -> Figure:
    """Held-out loss of every stage and release on every corpus, with the standard error."""
    rows = [*matrix.stages, *((f"release {name}", losses) for name, losses in matrix.releases)]
    corpora = matrix.corpora
    figure, axes = _axes(1.6 + 0.55 * max(len(rows), 2))
    values = [
        [losses[c].nats_per_token if c in losses else float("nan") for c in corpora]
        for _, losses in rows
    ]
    colours = matplotlib.colormaps["cividis_r"].with_extremes(bad="white")
    measured = [loss.nats_per_token for _, losses in rows for loss in losses.values()]
    norm = Normalize(min(measured), max(measured))
    image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto")
    axes.grid(False)
    _name_places(axes, corpora)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, (name, losses) in enumerate(rows):
        for x, corpus in enumerate(corpora):
            own = y < len(matrix.stages) and corpus_of(name) == corpus
            text, ink = "not measured", GREY
            if corpus in losses:
                text = _value(losses[corpus], with_error=len(corpora) <= MANY)
                ink = _ink(colours(norm(losses[corpus].nats_per_token)))
            weight = "bold" if own else "normal"
            axes.text(x, y, text, ha="center", va="center", color=ink, fontweight=weight)
    if matrix.releases:
        axes.axhline(len(matrix.stages) - 0.5, color="white", linewidth=4)
    axes.set_title("Held-out loss after each stage (lower is better)")
    axes.set_xlabel("held-out corpus (bold: the stage's own)")
    figure.colorbar(image, label="nats per token", pad=0.02)
    return figure


def _value(loss: HeldoutLoss, with_error: bool) -> str:
    error = loss.stderr_nats_per_token
    if not with_error or error is None:
        return f"{loss.nats_per_token:.3f}"
    return f"{loss.nats_per_token:.3f} ± {error:.3f}"


def _name_places(axes: Axes, names: Sequence[str]) -> None:
    """Name the places on the horizontal axis, aslant when there are many."""
    axes.set_xticks(range(len(names)), names)
    if len(names) > MANY:
        axes.tick_params(axis="x", labelrotation=35)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _ink(background: tuple[float, float, float, float]) -> str:
    """Black or white, whichever is read better on a background."""
    red, green, blue, _ = background
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"


@_picture
def loss_lines(matrix: LossMatrix) -> Figure:
    """Held-out loss on each corpus from stage to stage, with two standard errors."""
    figure, axes = _axes(4.2)
    for i, corpus in enumerate(matrix.corpora):
        measured = [(x, row[corpus]) for x, (_, row) in enumerate(matrix.stages) if corpus in row]
        if not measured:
            continue
        axes.errorbar(
            [x for x, _ in measured],
            [loss.nats_per_token for _, loss in measured],
            yerr=[2 * (loss.stderr_nats_per_token or 0.0) for _, loss in measured],
            color=_colour(i),
            marker=MARKERS[i % len(MARKERS)],
            markersize=7,
            capsize=3,
            linewidth=2,
            label=corpus,
        )
    _name_places(axes, [name for name, _ in matrix.stages])
    axes.set_xlim(-0.25, len(matrix.stages) - 0.75)
    axes.set_xlabel("after stage")
    axes.set_ylabel("held-out nats per token")
    axes.set_title("Held-out loss from stage to stage")
    axes.legend(title="corpus", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@_picture
def learning_rate(
    trunk: Sequence[RatePoint], releases: Mapping[str, Sequence[tuple[int, float]]] | None = None
) -> Figure:
    """The learning rate over the whole life of a run.

    trunk: its steps in order; they may be thinned out. releases: (step, eta) of each branch, by
    name, in the trunk's numbering.
    """
    figure, axes = _axes(4.0)
    branches = releases or {}
    last = max([trunk[-1].step, *(branch[-1][0] for branch in branches.values())])
    handles: list[Artist] = [
        Patch(color=PHASES[phase], label=phase) for phase in _shade(axes, trunk)
    ]
    axes.plot([p.step for p in trunk], [p.eta for p in trunk], color=COLOURS[0], linewidth=2)
    _name_stages(axes, trunk, last - trunk[0].step)
    for name, branch in branches.items():
        _draw_branch(axes, name, branch)
    if branches:
        handles.append(Line2D([], [], **RELEASE, label="anneal to a release"))
    axes.set_xlim(trunk[0].step, last + 0.13 * (last - trunk[0].step) if branches else last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda eta, _: f"{eta:g}"))
    axes.set_xlabel("optimizer step of the trunk")
    axes.set_ylabel("learning rate")
    axes.set_title("Learning rate over the whole run")
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=5)
    return figure


def _name_stages(axes: Axes, trunk: Sequence[RatePoint], span: int) -> None:
    """Mark where stages join, with their names along the top, upright where they are crowded."""
    top = max(p.eta for p in trunk)
    starts = [(stage, next(points).step) for stage, points in groupby(trunk, lambda p: p.stage)]
    ends = [step for _, step in starts[1:]] + [trunk[-1].step]
    crowded = any(
        end - start < 0.015 * len(stage) * span
        for (stage, start), end in zip(starts, ends, strict=True)
    )
    axes.set_ylim(0, top * (1.6 if crowded else 1.22))
    for stage, start in starts:
        if start != trunk[0].step:
            axes.axvline(start, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            stage,
            (start, axes.get_ylim()[1] * 0.98),
            (4, 0),
            textcoords="offset points",
            va="top",
            rotation=90 if crowded else 0,
        )


def _draw_branch(axes: Axes, name: str, branch: Sequence[tuple[int, float]]) -> None:
    steps, etas = zip(*branch, strict=True)
    axes.plot(steps, etas, **(RELEASE | {"marker": ""}))
    axes.plot(steps[-1], etas[-1], **RELEASE, clip_on=False)
    quarter = len(branch) // 4
    place = (steps[quarter], etas[quarter])
    axes.annotate(name, place, (7, 4), textcoords="offset points", color=RELEASE["color"])


def _shade(axes: Axes, trunk: Sequence[RatePoint]) -> list[str]:
    """Shade the trunk's phases; the phases there are."""
    spans = [list(points) for _, points in groupby(trunk, key=lambda p: p.phase)]
    starts = [span[0].step for span in spans] + [trunk[-1].step]
    for span, start, stop in zip(spans, starts, starts[1:], strict=False):
        axes.axvspan(start, stop, color=PHASES.get(span[0].phase, "white"), linewidth=0)
    return list(dict.fromkeys(span[0].phase for span in spans))


@_picture
def tokens_by_source(stages: Sequence[StageTokens]) -> Figure:
    """Tokens of each stage: new ones plain, replayed ones hatched, coloured by corpus."""
    figure, axes = _axes(1.9 + 0.55 * len(stages))
    own = [corpus_of(stage.stage) for stage in stages]
    corpora = list(dict.fromkeys([*own, *(c for stage in stages for c in stage.replayed)]))
    for y, stage in enumerate(stages):
        parts = [(own[y], stage.new, ""), *((c, n, "///") for c, n in stage.replayed.items())]
        left = 0
        for corpus, tokens, hatch in parts:
            colour = _colour(corpora.index(corpus))
            axes.barh(
                y, tokens, left=left, height=0.62, color=colour, hatch=hatch, edgecolor="white"
            )
            left += tokens
        share = sum(stage.replayed.values()) / left if left else 0.0
        note = f"{share:.0%} replayed" if stage.replayed else "all new"
        axes.annotate(note, (left, y), (6, 0), textcoords="offset points", va="center", color=GREY)
    axes.set_yticks(range(len(stages)), [stage.stage for stage in stages])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.margins(x=0.16)
    axes.set_xlim(0, None)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("tokens")
    axes.set_title("Tokens by source")
    handles = [Patch(facecolor=_colour(i), label=corpus) for i, corpus in enumerate(corpora)]
    if any(stage.replayed for stage in stages):
        handles.append(Patch(facecolor="#BBBBBB", edgecolor="white", hatch="///", label="replayed"))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@_picture
def pareto(trials: Sequence[Trial]) -> Figure:
    """Trials by adaptation and forgetting, less of both being better, with their front marked."""
    figure, axes = _axes(4.4)
    points = [(t.adaptation, t.forgetting) for t in trials]
    front = pareto_front(points)
    rest = [i for i in range(len(trials)) if i not in front]
    beaten: dict[str, Any] = {"marker": "s", "color": "#B34700", "markerfacecolor": "white"}
    for chosen, label, style in (
        (front, "on the front", {"marker": "o", "color": COLOURS[0], "linestyle": "--"}),
        (rest, "beaten by another", {**beaten, "linestyle": ""}),
    ):
        xs, ys = [points[i][0] for i in chosen], [points[i][1] for i in chosen]
        axes.plot(xs, ys, label=label, markersize=9, markeredgewidth=1.8, **style)
    middle = (min(points)[0] + max(points)[0]) / 2
    for i, trial in enumerate(trials):
        right = points[i][0] > middle
        axes.annotate(
            trial.label,
            points[i],
            (-6 if right else 6, 8),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=9,
            fontweight="bold" if i in front else "normal",
        )
    axes.margins(x=0.12, y=0.18)
    axes.set_xlabel("loss on the new corpus (nats per token): adaptation")
    axes.set_ylabel("forgetting of earlier corpora\n(nats per token)")
    axes.set_title("What was learned against what was lost: down and left is better")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    return figure
