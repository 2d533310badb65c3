"""Rows of finished steps on their way to the driver and into the next checkpoint."""

from __future__ import annotations

import time
from typing import Any

import ray

_FLUSH_SECONDS = 0.5


class RowBuffer:
    """Keeps rows for the next checkpoint; rank 0 also sends them to the driver twice a second.

    A call of an actor costs a noticeable part of a small model's step; one call for half a second
    of rows does not.
    """

    def __init__(self, driver: Any, rank: int) -> None:
        """Create an empty buffer.

        Args:
            driver: handle of the driver's progress actor.
            rank: of this worker; only rank 0 sends.
        """
        self._driver = driver if rank == 0 else None
        self._unsent: list[dict[str, Any]] = []
        self._unsaved: list[dict[str, Any]] = []
        self._sent_at = time.monotonic()
        self._answers: list[Any] = []
        self._stop = False

    def add(self, row: dict[str, Any]) -> None:
        """Add the row of a finished step."""
        self.add_silently(row)
        if self._driver is not None:
            self._unsent.append(row)
            if time.monotonic() - self._sent_at > _FLUSH_SECONDS:
                self.flush()

    def add_silently(self, row: dict[str, Any]) -> None:
        """Add the row of a step that was left out: for the checkpoint, not for the driver."""
        self._unsaved.append(row)

    def flush(self) -> None:
        """Send what was not sent yet, without waiting for its arrival."""
        if self._driver is not None and self._unsent:
            self._answers.append(self._driver.push.remote(self._unsent))
            self._unsent = []
        self._sent_at = time.monotonic()

    def take(self) -> list[dict[str, Any]]:
        """Return the rows since the last call, for the next checkpoint."""
        self.flush()
        rows, self._unsaved = self._unsaved, []
        return rows

    @property
    def stop_requested(self) -> bool:
        """Return whether the driver asked the workers to end, as far as its answers are here."""
        if self._answers:
            # timeout=0: answers that have not arrived are looked at in the next step.
            came, self._answers = ray.wait(self._answers, num_returns=len(self._answers), timeout=0)
            self._stop |= any(ray.get(came))
        return self._stop
