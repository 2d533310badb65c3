"""Show how far long uploads and downloads are, without a parameter through every caller."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_FIRST_SECONDS = 10.0
_EVERY_SECONDS = 10.0
_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


class TransferProgress:
    """Bytes that were moved so far; a line now and then, and none for what takes seconds.

    Args:
        words: what is done, such as "landing french".
        total_bytes: number of bytes that are expected.
        show: prints a line.
        clock: seconds, always rising.
    """

    def __init__(
        self,
        words: str,
        total_bytes: int,
        show: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._words = words
        self._total = total_bytes
        self._show = show
        self._clock = clock
        self._moved = 0
        self._began = clock()
        self._next = self._began + _FIRST_SECONDS

    def add(self, count: int) -> None:
        """Count bytes that were moved, and show a line where one is due."""
        self._moved += count
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _EVERY_SECONDS
        speed = self._moved / (now - self._began)
        # Each file may be moved twice: what differs from its digest is tried once more.
        left = max(0, self._total - self._moved)
        seconds = int(left / speed) if speed else 0
        self._show(
            f"{self._words}: {_size(self._moved)} of {_size(self._total)}, {_size(speed)}/s, "
            f"{seconds // 60}:{seconds % 60:02d} left"
        )


_CURRENT: ContextVar[TransferProgress | None] = ContextVar("perennial_transfer", default=None)


@contextmanager
def shown_transfer(words: str, total_bytes: int, show: Callable[[str], None]) -> Iterator[None]:
    """Show how far the uploads and downloads of this thread are, until the block ends.

    Args:
        words: what is done.
        total_bytes: number of bytes that are expected.
        show: prints a line.
    """
    token = _CURRENT.set(TransferProgress(words, total_bytes, show))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def count_moved(count: int) -> None:
    """Count bytes that a store moved, for the transfer that is shown, if any."""
    transfer = _CURRENT.get()
    if transfer is not None:
        transfer.add(count)


def _size(count: float) -> str:
    for unit, scale in _UNITS:
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"
