"""Micro batches: a global batch divided among workers of any number, and copied to the device.

Every worker runs the same number of micro batches, as collectives want it. Their sizes differ when
the global batch does not divide, so each loss is weighted: the gradient is the mean over the
global batch at any size (invariant I3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

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
    """Return the number of micro batches that every rank runs for a step.

    Args:
        global_batch: sequences in a step, over all ranks.
        micro_batch: most sequences in a micro batch.
        world_size: number of ranks.
    """
    largest_share = -(-global_batch // world_size)
    return -(-largest_share // micro_batch)


def micro_batches(
    global_batch: int, micro_batch: int, rank: int, world_size: int
) -> list[MicroBatch]:
    """Return the micro batches of one rank's part of a step, as even as they can be."""
    mine = slice_rank_rows(global_batch, rank, world_size)
    rows = mine.stop - mine.start
    count = micro_batches_per_rank(global_batch, micro_batch, world_size)
    parts = []
    for index in range(count):
        first, last = index * rows // count, (index + 1) * rows // count
        weight = (last - first) * count * world_size / global_batch
        parts.append(MicroBatch(slice(first, max(last, first + 1)), last - first, weight))
    return parts


def on_device(parts: Iterable[np.ndarray], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield every part's ids `(sequences, sequence)` on the device, in order.

    On a GPU the next one is copied out of pinned memory while this one is computed.
    """
    copies = (_copied(part, device) for part in parts)
    ahead = next(copies)
    for following in copies:
        yield ahead
        ahead = following
    yield ahead


def _copied(part: np.ndarray, device: torch.device) -> torch.Tensor:
    ids = torch.from_numpy(part)
    if device.type != "cuda":
        return ids.to(device)
    return ids.pin_memory().to(device, non_blocking=True)


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Make what is random in a step depend on nothing but these three (invariant I9)."""
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> 1))
