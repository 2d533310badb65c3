"""What a worker group must know of a job's past besides its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.training.spikes.skips import read_skips

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


def recall(store: Store, folder: str, last_rows: list[dict[str, Any]]) -> Memory:
    """The memory of a job's folder; `last_rows` are its last steps' metrics, in order."""
    rows = [row for row in last_rows if "loss" in row]
    return Memory(
        losses=tuple(row["loss"] for row in rows),
        spikes=max((row.get("spikes", 0) for row in rows), default=0),
        skipped=tuple(skip.step for skip in read_skips(store, folder)),
    )
