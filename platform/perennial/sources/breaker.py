"""Breaking off what a thread waits for: a server that sends a byte a minute, a program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, Timer
from time import monotonic

from perennial.errors import PullFailed


@dataclass
class TimeLimit:
    """Time that a wait may take.

    Attributes:
        deadline: its end on the monotonic clock, seconds.
        late: whether the wait was broken off at its deadline.
    """

    deadline: float
    late: bool = False

    @property
    def seconds_left(self) -> float:
        """Return the seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - monotonic())


class Breaker:
    """Ends the waits of one thread, at their deadlines or all at once from another thread.

    A time-out of a socket is no bound for an answer: it begins again with every piece. So a wait
    comes with an action that ends it from outside, such as shutting the socket.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._actions: list[Callable[[], None]] = []
        self.tripped = False

    def trip(self) -> None:
        """End the present waits, and every later one before it begins."""
        with self._lock:
            self.tripped = True
            actions = list(self._actions)
        for action in actions:
            action()

    @contextmanager
    def limit(self, seconds: float, end: Callable[[], None]) -> Iterator[TimeLimit]:
        """Call `end` in another thread if the block has not ended after some time.

        Args:
            seconds: the time.
            end: ends what the block waits for; harmless when nothing does.

        Raises:
            PullFailed: the process is about to end.
        """
        limit = TimeLimit(monotonic() + seconds)

        def end_late() -> None:
            limit.late = True
            end()

        with self._lock:
            if self.tripped:
                raise PullFailed("the process is ending")
            self._actions.append(end)
        timer = Timer(seconds, end_late)
        timer.daemon = True
        timer.start()
        try:
            yield limit
        finally:
            timer.cancel()
            with self._lock:
                self._actions.remove(end)
