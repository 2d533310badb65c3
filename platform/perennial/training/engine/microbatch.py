"""How a global batch is shared among workers of any number: pure integer arithmetic.

Every worker runs the same number of micro batches, as collectives want it. Their sizes differ when
the global batch does not divide, so each loss is weighted: the gradient is the mean over the
global batch at any size (invariant I3).
"""

from __future__ import annotations

from dataclasses import dataclass

from perennial.mixture.batches import slice_rank_rows


@dataclass(frozen=True)
class MicroBatch:
    """Some of a rank's sequences, for one forward and backward pass.

    rows: which of the rank's sequences; at least one.
    sequences: how many of them count; 0 for one that only keeps step with the other ranks.
    weight: factor of the mean loss over `rows`, before the engine divides by the number of micro
        batches and averages over ranks.
    """

    rows: slice
    sequences: int
    weight: float


def micro_batches_per_rank(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Micro batches of at most `micro_batch` sequences that every rank runs for a step."""
    largest_share = -(-global_batch // world_size)
    return -(-largest_share // micro_batch)


def micro_batches(
    global_batch: int, micro_batch: int, rank: int, world_size: int
) -> list[MicroBatch]:
    """The micro batches of one rank's part of a step, as even as they can be."""
    mine = slice_rank_rows(global_batch, rank, world_size)
    rows = mine.stop - mine.start
    count = micro_batches_per_rank(global_batch, micro_batch, world_size)
    found = []
    for index in range(count):
        first, last = index * rows // count, (index + 1) * rows // count
        weight = (last - first) * count * world_size / global_batch
        found.append(MicroBatch(slice(first, max(last, first + 1)), last - first, weight))
    return found
