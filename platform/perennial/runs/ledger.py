"""Read and append the event log of a run; an entry's key is created once, which is the lock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from perennial.errors import InputError, LostRace, NewerSchema
from perennial.runs import snapshots
from perennial.runs.events import Event, decode, encode
from perennial.runs.state import RunState
from perennial.store import Log, Store

FOLDER = "ledger"
E = TypeVar("E", bound=Event)


def now() -> str:
    """Return the present time as events carry it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def moment(at: str) -> str:
    """Return an event's time for users."""
    return f"{at[:16].replace('T', ' ')} UTC"


class Ledger:
    """A run's events in the store, and the state that they fold to.

    next: number of the entry that would be appended next.

    Args:
        store: the run's store.
        log: called with a line about every snapshot that is ignored.
    """

    def __init__(self, store: Store, log: Callable[[str], None] = lambda _: None) -> None:
        self._store = store
        self._log = Log(store, FOLDER)
        self._log_line = log
        self.next = 0
        self.state = RunState()

    def read(self) -> RunState:
        """Fold in the events since the last read: one request per event, and one for the end."""
        if not self.next:
            snapshot = snapshots.newest(self._store, self._log, self._log_line)
            if snapshot is not None:
                self.next, self.state = snapshot.events, snapshot.state
        for number, data in self._log.tail(self.next):
            self.state.apply(self._event(number, data))
            self.next = number + 1
        return self.state

    def key(self, number: int) -> str:
        """Return the key of an entry."""
        return self._log.key(number)

    def _event(self, number: int, data: bytes) -> Event:
        try:
            return decode(data)
        except ValueError as wrong:
            remedy = "restore it, or use the version of perennial that wrote it"
            if isinstance(wrong, NewerSchema):
                remedy = "use the version of perennial that wrote it, or a later one"
            raise InputError(
                f"{self._store.url}/{self._log.key(number)}",
                "",
                f"is not an event that this version knows ({wrong})",
                remedy,
                code="ledger-unreadable",
            ) from None

    def transact(self, decide: Callable[[RunState], E | None]) -> E | None:
        """Append the event that `decide` derives from the state as it is now.

        Where another process writes first, the state is read again and `decide` called again, so
        no decision rests on a state that was not the last one.

        Args:
            decide: returns the event, or None to write nothing. What it raises ends the call, and
                nothing is written.

        Returns:
            The event that was appended, or None.

        Raises:
            InvalidTransition: the event cannot follow the state that it was decided on.
        """
        while True:
            event = decide(self.read())
            if event is None:
                return None
            try:
                self.append(event)
            except LostRace:
                continue
            return event

    def append(self, event: Event) -> None:
        """Write the next event.

        Raises:
            InvalidTransition: it cannot follow; nothing was written.
            LostRace: another process wrote this entry first; nothing was written.
        """
        self.state.check(event)
        data = encode(event)
        if not self._log.append(self.next, data):
            raise LostRace(self._log.key(self.next))
        self.state.apply(event)
        self.next += 1
        if snapshots.due(self.next):
            snapshots.write(self._store, self.state, self.next, data)
