"""SIGTERM to the driver: the workers are asked to save before it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Termination:
    """Whether this process was told to end.

    graceful: whether there is something to save; without it, and at a second SIGTERM, the process
        ends at once with SystemExit.
    """

    def __init__(self) -> None:
        self.asked = False
        self.graceful = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen for SIGTERM; only in the main thread, where Python lets handlers be set."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.asked or not self.graceful:
            raise SystemExit(128 + number)
        self.asked = True
