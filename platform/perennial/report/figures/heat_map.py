"""Draw the matrix of held-out losses: each cell its loss, coloured by what changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle

from perennial.report.figures.style import (
    COLOURS,
    CROWD,
    axes_of,
    broken,
    grey,
    legend_below,
    named_places,
    narrow,
    picture,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from perennial.evaluation.loss import HeldoutLoss
    from perennial.evaluation.matrix import LossMatrix

FELL, ROSE = COLOURS[0], COLOURS[5]
_FULL = 0.6
"""Opacity of the largest change: text stays readable over it, on any paper."""
_LEAST_NATS = 0.05
"""A change of fewer nats never has the full colour: noise looks like noise."""
_MANY = 5
"""Corpora up to which there is room for three decimal places and the standard error."""


def changes(
    matrix: LossMatrix, released_after: Mapping[str, str] | None = None
) -> list[dict[str, float]]:
    """Return, for each row of the matrix, by how much its loss on each corpus changed. Pure.

    It is counted from the end of the corpus's own stage, and where that has not been yet, from the
    base. A cell with neither before it has no change.

    Args:
        matrix: the run's losses.
        released_after: the stage off which each release was annealed; default: the last one.
    """
    own = {corpus: i for i in range(len(matrix.stages)) for corpus in matrix.own(i)}
    number = {name: i for i, (name, _) in enumerate(matrix.stages)}
    after = {f"release {name}": stage for name, stage in (released_after or {}).items()}
    last, base = len(matrix.stages) - 1, matrix.base
    rows: list[dict[str, float]] = []
    for name, losses in matrix.rows[len(matrix.origins) :]:
        stage = number.get(after.get(name, name), last)
        row: dict[str, float] = {}
        for corpus, loss in losses.items():
            reference = base.get(corpus)
            if corpus in own and own[corpus] <= stage:
                reference = matrix.stages[own[corpus]][1].get(corpus)
            if reference is not None:
                row[corpus] = loss.nats_per_token - reference.nats_per_token
        rows.append(row)
    before: list[dict[str, float]] = [{} for _ in matrix.origins]
    return before + rows


@picture
def loss_heat_map(matrix: LossMatrix, released_after: Mapping[str, str] | None = None) -> Figure:
    """Draw the held-out loss of every stage and release on every corpus, and what changed.

    Args:
        matrix: the run's losses.
        released_after: as for `changes`.
    """
    names, corpora = [name for name, _ in matrix.rows], matrix.corpora
    changed = changes(matrix, released_after)
    most = max([_LEAST_NATS, *(abs(nats) for row in changed for nats in row.values())])
    crowded = len(names) > 2 * CROWD or len(corpora) > CROWD
    figure, axes = axes_of(5.6 if crowded else 2.2 + 0.55 * max(len(names), 2))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlim(-0.5, len(corpora) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    if crowded:
        axes.imshow(_pixels(changed, corpora, most), aspect="auto", interpolation="nearest")
    else:
        _draw_cells(axes, matrix, changed, most)
    _name_corpora(axes, corpora)
    places, shown = named_places(names) if crowded else (range(len(names)), names)
    axes.set_yticks(list(places), [broken(name) for name in shown])
    axes.set_title("Held-out loss, and its change")  # short: names are beside it
    axes.set_xlabel("held-out corpus" if crowded else "held-out corpus (bold: its own stage)")
    if any(changed):
        handles = [
            Patch(facecolor=FELL, alpha=_FULL, label=f"fell, by up to {most:.2f} nats"),
            Patch(facecolor=ROSE, alpha=_FULL, label=f"rose, by up to {most:.2f} nats"),
        ]
        legend_below(axes, 1 if narrow() else 2, handles=handles)
    return figure


def _pixels(
    changed: Sequence[Mapping[str, float]], corpora: Sequence[str], most: float
) -> np.ndarray[tuple[int, int, int], np.dtype[np.float64]]:
    """Return the cells as colours with their opacity, one pixel each."""
    place = {corpus: x for x, corpus in enumerate(corpora)}
    pixels = np.zeros((len(changed), len(corpora), 4))
    for y, row in enumerate(changed):
        for corpus, nats in row.items():
            tint = to_rgb(FELL if nats < 0 else ROSE)
            pixels[y, place[corpus]] = (*tint, _FULL * abs(nats) / most)
    return pixels


def _draw_cells(
    axes: Axes, matrix: LossMatrix, changed: Sequence[Mapping[str, float]], most: float
) -> None:
    first, corpora = len(matrix.origins), matrix.corpora
    stages = len(matrix.shown)
    slim = narrow() or len(corpora) > _MANY
    size = (6 if len(corpora) > _MANY - 1 else 8) if narrow() else 8 if slim else 10
    for y, (_, losses) in enumerate(matrix.rows):
        on_trunk = 0 <= y - first < stages
        not_drawn = matrix.left_out(matrix.shown[y - first]) if on_trunk else frozenset()
        for x, corpus in enumerate(corpora):
            is_own = on_trunk and corpus in matrix.own(matrix.shown[y - first])
            nats = changed[y].get(corpus)
            if nats:
                tint = FELL if nats < 0 else ROSE
                cell = Rectangle((x - 0.49, y - 0.48), 0.98, 0.96, facecolor=tint, linewidth=0)
                cell.set_alpha(_FULL * abs(nats) / most)
                axes.add_patch(cell)
            text = "-" if slim else "not measured"
            if corpus in not_drawn:
                text = "·" if slim else "not drawn"
            if corpus in losses:
                text = _value(losses[corpus], None if is_own else nats, slim)
            drawn = axes.text(
                x,
                y,
                text,
                ha="center",
                va="center",
                fontsize=size,
                fontweight="bold" if is_own else "normal",
            )
            if corpus not in losses or (nats is None and not is_own):
                drawn.set_color(grey())
    for edge in {first, first + stages} - {0, len(matrix.rows)}:
        axes.axhline(edge - 0.5, color=grey(), linewidth=1)


def _value(loss: HeldoutLoss, change: float | None, slim: bool) -> str:
    """Return a cell's loss, and below it what changed with its standard error."""
    digits = 2 if slim else 3
    error = loss.stderr_nats_per_token if change is None else loss.stderr_of_change
    uncertain = "" if slim or error is None else f" ± {error:.{digits}f}"
    if change is None:
        return f"{loss.nats_per_token:.{digits}f}{uncertain}"
    return f"{loss.nats_per_token:.{digits}f}\n{change:+.{digits}f}{uncertain}"


def _name_corpora(axes: Axes, names: Sequence[str]) -> None:
    """Name the places on the horizontal axis, aslant when there are many."""
    places, shown = named_places(names)
    axes.set_xticks(places, shown)
    if len(names) > (3 if narrow() else _MANY):
        axes.tick_params(axis="x", labelrotation=35)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
