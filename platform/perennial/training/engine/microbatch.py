"""Micro batches: a global batch divided among workers of any number, and copied to the device.

Every worker runs the same number of micro batches, as collectives want it; a worker is here what
reads rows of its own, so a whole tensor-parallel group (`grid`). Their sizes differ when
the global batch does not divide, so each loss is weighted: the gradient is the mean over the
global batch at any size (invariant I3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from perennial.mixture.batches import slice_rank_rows

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.training.engine.grid import Grid


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


class Weights(NamedTuple):
    """Weights of a rank's micro batches in a step.

    factors: of the mean loss of each one, as `MicroBatch.weight`.
    shares: of all that the step predicts, by micro batch.
    padding: tokens of padding among this rank's; None where rows have none.
    """

    factors: Sequence[torch.Tensor | float]
    shares: Sequence[torch.Tensor | float]
    padding: int | None = None


def weigh_sequences(parts: Sequence[MicroBatch], global_batch: int) -> Weights:
    """Return the weights of micro batches whose rows predict one number of tokens each."""
    return Weights([p.weight for p in parts], [p.sequences / global_batch for p in parts])


def weigh_targets(
    parts: Sequence[MicroBatch],
    tokens: npt.NDArray[np.int64],
    end_of_document: int,
    device: torch.device,
    grid: Grid,
) -> Weights:
    """Return the weights of micro batches of padded rows. A collective.

    What counts is how many tokens a micro batch predicts, so that the gradient is the mean over
    all that the global batch predicts, at any number of workers (invariant I3).

    Args:
        parts: this rank's micro batches.
        tokens: this rank's rows `(sequences, sequence)`.
        end_of_document: the id that ends a document; right after another one it is padding.
        device: of the collective, and of the weights.
        grid: the place of this rank.
    """
    padding = (tokens[:, 1:] == end_of_document) & (tokens[:, :-1] == end_of_document)
    targets = padding.shape[1] - padding.sum(axis=1)
    mine = [int(targets[p.rows.start : p.rows.start + p.sequences].sum()) for p in parts]
    predicted = torch.tensor(mine, dtype=torch.float64).to(device, torch.float32)
    # The ranks of a group have the same rows, which count once.
    total = torch.tensor(sum(mine) if grid.leads else 0, dtype=torch.int64).to(device)
    dist.all_reduce(total)
    # Where all of a batch was erased there is nothing to divide.
    shares = list(predicted / total.clamp(min=1))
    factors = [share * len(parts) * grid.data_size for share in shares]
    return Weights(factors, shares, int(padding.sum()))


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
