"""TiC-LM's means over time steps, and regret, against matrices that were worked by hand."""

from __future__ import annotations

import pytest

from perennial.evaluation import HeldoutLoss, LossMatrix
from perennial.evaluation.time_steps import (
    CellMean,
    Cells,
    TransferMeans,
    cells_of,
    new_corpora,
    regret,
    transfer_means,
)


def losses(**nats: float) -> dict[str, HeldoutLoss]:
    return {corpus: HeldoutLoss(corpus, n, n / 3, 4, 40, 160, 0.1) for corpus, n in nats.items()}


MATRIX = LossMatrix(
    (
        ("00-a", losses(a=4.0, b=7.0, c=9.0, other=1.0)),
        ("01-b", losses(a=4.5, b=3.0, c=8.0)),
        ("02-c", losses(a=5.0, b=3.5, c=2.0)),
    )
)


def test_means_are_those_of_the_cells_before_on_and_after_the_diagonal() -> None:
    cells = cells_of([row for _, row in MATRIX.stages], new_corpora(MATRIX))
    assert cells == [[4.0, 7.0, 9.0], [4.5, 3.0, 8.0], [5.0, 3.5, 2.0]]
    means = transfer_means(cells)
    assert means.backward.value == pytest.approx((4.5 + 5.0 + 3.5) / 3)
    assert means.in_distribution == CellMean(3.0, 3, 3)
    assert means.forward == CellMean(8.0, 3, 3)


def test_a_step_of_several_corpora_counts_once() -> None:
    matrix = LossMatrix(
        (("00-a", losses(a=4.0, b=6.0, c=8.0)), ("01-b-c", losses(a=5.0, b=3.0, c=2.0))),
        together={"01-b-c": ("b", "c")},
    )
    cells = cells_of([row for _, row in matrix.stages], new_corpora(matrix))
    assert cells == [[4.0, 7.0], [5.0, 2.5]]


def test_a_cell_that_was_not_measured_leaves_no_mean_over_it() -> None:
    rows = [losses(a=4.0), losses(a=4.5, b=3.0), None]
    cells = cells_of(rows, [("a",), ("b",), ("c",)])
    assert cells == [[4.0, None, None], [4.5, 3.0, None], [None, None, None]]
    means = transfer_means(cells)
    assert means.backward == CellMean(None, 1, 3)
    assert means.in_distribution == CellMean(None, 2, 3)
    assert means.forward == CellMean(None, 0, 3)
    assert transfer_means([[4.0]]).backward == CellMean(None, 0, 0), "one step has nothing before"


def test_regret_is_above_the_oracle_and_absent_where_either_is() -> None:
    cells = [[4.0, 7.0], [4.5, 3.0]]
    last = [[3.5, 2.75], [3.5, 2.75]]
    assert regret(cells, last) == [[0.5, 4.25], [1.0, 0.25]]
    assert transfer_means(regret(cells, last)) == TransferMeans(
        CellMean(1.0, 1, 1), CellMean(0.375, 2, 2), CellMean(4.25, 1, 1)
    )
    of_each_step: Cells = [[None, None], [3.5, 2.75]]
    assert regret(cells, of_each_step) == [[None, None], [1.0, 0.25]]
    assert regret(cells, cells) == [[0.0, 0.0], [0.0, 0.0]]
