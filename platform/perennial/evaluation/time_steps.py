"""Transfer and regret as TiC-LM states them, from losses by time step and evaluation. Pure.

E[i][j] is the held-out loss of the model of step i on what was new in step j, in nats per token
(Li et al. 2025, arXiv 2504.02107). In-distribution is the mean of the diagonal, backward that of
the cells before it (what earlier steps brought) and forward that of the cells after it (what is to
come). Regret is the same of E minus the losses of an oracle, a model that was retrained from
scratch. A cell without a measurement is None, and so is every mean over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perennial.evaluation.loss import HeldoutLoss
    from perennial.evaluation.matrix import LossMatrix

Cells = Sequence[Sequence[float | None]]
"""Losses (steps, steps), in nats per token; None for a cell that was not measured."""

Losses = Sequence["Mapping[str, HeldoutLoss] | None"]
"""Of the model of each step, losses by corpus; None where there is no such model."""


@dataclass(frozen=True)
class CellMean:
    """The mean of cells, in nats per token; None where one was not measured, or there are none."""

    value: float | None
    measured: int
    cells: int


@dataclass(frozen=True)
class TransferMeans:
    """Means over a matrix of time steps."""

    backward: CellMean
    in_distribution: CellMean
    forward: CellMean


def cells_of(losses: Losses, columns: Sequence[Sequence[str]]) -> Cells:
    """Return the loss of each step's model on what is new in each step; the mean of several.

    Args:
        losses: of the models, in the order of the steps.
        columns: the corpora that are new in each step.
    """
    return [[_mean_loss(row, corpora) for corpora in columns] for row in losses]


def _mean_loss(losses: Mapping[str, HeldoutLoss] | None, corpora: Sequence[str]) -> float | None:
    if not losses or not corpora or any(corpus not in losses for corpus in corpora):
        return None
    return fmean(losses[corpus].nats_per_token for corpus in corpora)


def new_corpora(matrix: LossMatrix) -> list[tuple[str, ...]]:
    """Return the corpora that are new in each stage."""
    return [matrix.own(stage) for stage in range(len(matrix.stages))]


def transfer_means(cells: Cells) -> TransferMeans:
    """Return the means of the diagonal, and of the cells before and after it."""
    steps = range(len(cells))
    return TransferMeans(
        backward=_cell_mean([cells[i][j] for i in steps for j in steps if j < i]),
        in_distribution=_cell_mean([cells[i][i] for i in steps]),
        forward=_cell_mean([cells[i][j] for i in steps for j in steps if j > i]),
    )


def _cell_mean(cells: Sequence[float | None]) -> CellMean:
    measured = [cell for cell in cells if cell is not None]
    whole = bool(measured) and len(measured) == len(cells)
    return CellMean(fmean(measured) if whole else None, len(measured), len(cells))


def regret(cells: Cells, oracle: Cells) -> Cells:
    """Return how far each loss is above the oracle's, in nats per token; below 0 it is better.

    Args:
        cells: losses of the models.
        oracle: those of the oracle of each step; of the same shape.
    """
    return [
        [
            None if ours is None or theirs is None else ours - theirs
            for ours, theirs in zip(row, other, strict=True)
        ]
        for row, other in zip(cells, oracle, strict=True)
    ]
