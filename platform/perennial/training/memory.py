"""What a worker group must know of a job's past besides its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.training.checkpoint import METRICS, committed_steps, folder_of
from perennial.training.skips import read_skips

if TYPE_CHECKING:
    from perennial.store import Store


@dataclass(frozen=True)
class Memory:
    """losses: those of the last steps, in order. spikes: how many were ignored so far.
    skipped: trunk steps that are not trained (each the step that its batch would have led to).
    """

    losses: tuple[float, ...]
    spikes: int
    skipped: tuple[int, ...]


def recall(store: Store, folder: str, window: int) -> Memory:
    """The memory of a job's folder; `window` losses at most."""
    rows = [row for row in _last_rows(store, folder, window) if "loss" in row]
    return Memory(
        losses=tuple(row["loss"] for row in rows),
        spikes=max((row.get("spikes", 0) for row in rows), default=0),
        skipped=tuple(skip.step for skip in read_skips(store, folder)),
    )


def _last_rows(store: Store, folder: str, count: int) -> list[dict[str, Any]]:
    """The last rows of the metrics of a folder's checkpoints, in order; at least `count`."""
    rows: list[dict[str, Any]] = []
    for step in reversed(committed_steps(store, folder)):
        if len(rows) >= count:
            break
        data = store.read(f"{folder_of(folder, step)}/{METRICS}")
        rows[:0] = [json.loads(line) for line in data.splitlines()]
    return rows
