"""Looking at the join of a stage to the trunk."""

from __future__ import annotations

import numpy as np
import pytest

from perennial.training.join_probe import LAST_LOOK, looks, rows_of_a_side, shared_out


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [(1, {0, 1}), (10, {0, 1, 2, 4, 8}), (1000, {0, 1, 2, 4, 8, 16, 32, LAST_LOOK})],
)
def test_a_join_is_looked_at_ever_less_often(steps: int, wanted: set[int]) -> None:
    assert looks(steps) == wanted


@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (3, 1), (4, 2), (16, 8), (1024, 8)])
def test_a_look_costs_no_more_than_a_step(batch: int, rows: int) -> None:
    assert rows_of_a_side(batch) == rows


@pytest.mark.parametrize("world", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("micro", [1, 3, 8])
def test_every_row_counts_once_and_every_rank_takes_as_many_parts(world: int, micro: int) -> None:
    rows = np.arange(8).reshape(8, 1)
    ranks = [list(shared_out(rows, rank, world, micro)) for rank in range(world)]
    assert len({len(parts) for parts in ranks}) == 1
    counted = [part[:count].ravel() for parts in ranks for part, count in parts]
    assert sorted(np.concatenate(counted)) == list(range(8))
    assert all(1 <= len(part) <= micro for parts in ranks for part, _ in parts)


def test_nothing_held_out_gives_no_parts() -> None:
    assert list(shared_out(np.empty((0, 4), np.int64), 0, 2, 4)) == []
