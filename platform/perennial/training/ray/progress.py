"""What a worker tells the driver and the next checkpoint about its steps."""

from __future__ import annotations

import time
from typing import Any

import ray

_FLUSH_SECONDS = 0.5


class News:
    """Rows of finished steps: kept for the checkpoint, sent on by rank 0 every half second.

    A call of an actor costs a step of a small model a share of its time; half a second of rows in
    one call does not.
    """

    def __init__(self, tap: Any, rank: int) -> None:
        self._tap = tap if rank == 0 else None
        self._unsent: list[dict[str, Any]] = []
        self._unsaved: list[dict[str, Any]] = []
        self._sent_at = time.monotonic()
        self._answers: list[Any] = []
        self._stop = False

    def add(self, row: dict[str, Any]) -> None:
        """A step is finished."""
        self.keep(row)
        if self._tap is not None:
            self._unsent.append(row)
            if time.monotonic() - self._sent_at > _FLUSH_SECONDS:
                self.flush()

    def keep(self, row: dict[str, Any]) -> None:
        """Only the checkpoint is to tell of this step."""
        self._unsaved.append(row)

    def flush(self) -> None:
        """Send what was not sent yet; nobody waits for its arrival."""
        if self._tap is not None and self._unsent:
            self._answers.append(self._tap.push.remote(self._unsent))
            self._unsent = []
        self._sent_at = time.monotonic()

    def take(self) -> list[dict[str, Any]]:
        """The rows since the last checkpoint, for the next one."""
        self.flush()
        rows, self._unsaved = self._unsaved, []
        return rows

    @property
    def stop(self) -> bool:
        """Whether the driver asked the workers to stop, as far as its answers have come in."""
        if self._answers:
            came, self._answers = ray.wait(self._answers, num_returns=len(self._answers), timeout=0)
            self._stop |= any(ray.get(came))
        return self._stop
