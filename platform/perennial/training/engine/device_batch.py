"""A rank's micro batches on the device, and the randomness of a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch


def on_device(parts: Iterable[np.ndarray], device: torch.device) -> Iterator[torch.Tensor]:
    """Each part's ids `(sequences, sequence)` on the device, in order.

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
