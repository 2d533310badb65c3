"""A global batch shared among any number of workers (invariant I3)."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as some

from perennial.mixture.batches import slice_rank_rows
from perennial.training.engine.microbatch import micro_batches, micro_batches_per_rank


@some.composite
def sizes(draw: some.DrawFn) -> tuple[int, int, int]:
    """(global batch, micro batch, workers), workers at most as many as sequences."""
    world = draw(some.integers(1, 70))
    return draw(some.integers(world, 600)), draw(some.integers(1, 70)), world


@given(sizes())
def test_I3_every_sequence_belongs_to_one_rank_and_to_one_micro_batch(
    found: tuple[int, int, int],
) -> None:
    global_batch, micro, world = found
    taken: list[int] = []
    for rank in range(world):
        mine = slice_rank_rows(global_batch, rank, world)
        rows = list(range(global_batch))[mine]
        assert len(rows) in (global_batch // world, -(-global_batch // world))
        for part in micro_batches(global_batch, micro, rank, world):
            assert len(rows[part.rows]) == max(1, part.sequences) <= micro
            taken += rows[part.rows][: part.sequences]
    assert taken == list(range(global_batch))


@given(sizes())
def test_I3_the_gradient_is_the_mean_over_the_global_batch(found: tuple[int, int, int]) -> None:
    """What the engine makes of the losses: each divided by their number, averaged over ranks."""
    global_batch, micro, world = found
    count = micro_batches_per_rank(global_batch, micro, world)
    for rank in range(world):
        parts = micro_batches(global_batch, micro, rank, world)
        assert len(parts) == count
        for part in parts:
            share_of_one = Fraction(part.weight).limit_denominator(10**9) / (count * world)
            if part.sequences:
                share_of_one /= part.sequences
                assert abs(share_of_one - Fraction(1, global_batch)) < Fraction(1, 10**12)
            else:
                assert share_of_one == 0


@given(some.integers(1, 8), some.integers(1, 8), some.integers(1, 8))
def test_losses_are_left_as_they_are_where_the_batch_divides(
    micro: int, world: int, accumulation: int
) -> None:
    """So that nothing is rounded: the runs of one size stay the same to the bit."""
    for rank in range(world):
        parts = micro_batches(micro * world * accumulation, micro, rank, world)
        assert [part.weight for part in parts] == [1.0] * accumulation
