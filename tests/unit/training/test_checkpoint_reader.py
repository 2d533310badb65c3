"""Which of a checkpoint's optimizer files a worker asks for first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from perennial.training.checkpoint.reader import nearest_first

SIZES = st.integers(1, 40)


@given(SIZES, SIZES, st.data())
def test_every_part_once_and_those_that_overlap_the_share_first(
    parts: int, world_size: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, world_size - 1))
    order = nearest_first(parts, rank, world_size)
    assert sorted(order) == list(range(parts))
    overlapping = {
        part
        for part in range(parts)
        if part * world_size < (rank + 1) * parts and rank * parts < (part + 1) * world_size
    }
    assert set(order[: len(overlapping)]) == overlapping


@given(SIZES, st.data())
def test_a_group_of_the_same_size_asks_for_its_own_file_first(
    world_size: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, world_size - 1))
    assert nearest_first(world_size, rank, world_size)[0] == rank
