"""The append-only log of a run. The key that already exists is the lock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from perennial.errors import InputError, LostRace, NewerSchema
from perennial.runs import snapshots
from perennial.runs.events import Event, decode, encode
from perennial.runs.state import RunState
from perennial.store import Log, Store

FOLDER = "ledger"


def now() -> str:
    """The time that an event carries."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def moment(at: str) -> str:
    """An event's time as a person writes it."""
    return f"{at[:16].replace('T', ' ')} UTC"


class Ledger:
    """A run's events in the store, and the state that they fold to.

    next: number of the event that would be appended next.
    say: hears of snapshots that are ignored.
    """

    def __init__(self, store: Store, say: Callable[[str], None] = lambda _: None) -> None:
        self._store = store
        self._log = Log(store, FOLDER)
        self._say = say
        self.next = 0
        self.state = RunState()

    def read(self) -> RunState:
        """Fold in every event that was written since the last read: a request each, and one."""
        if not self.next:
            snapshot = snapshots.newest(self._store, self._log, self._say)
            if snapshot is not None:
                self.next, self.state = snapshot.events, snapshot.state
        for number, data in self._log.tail(self.next):
            self.state.apply(self._event(number, data))
            self.next = number + 1
        return self.state

    def _event(self, number: int, data: bytes) -> Event:
        try:
            return decode(data)
        except ValueError as wrong:
            first = str(wrong).splitlines()[-2].strip() if "\n" in str(wrong) else str(wrong)
            remedy = "restore it, or use the version of perennial that wrote it"
            if isinstance(wrong, NewerSchema):
                remedy = "use the version of perennial that wrote it, or a later one"
            raise InputError(
                f"{self._store.url}/{self._log.key(number)}",
                "",
                f"is not an event that this version knows ({first})",
                remedy,
            ) from None

    def append(self, event: Event) -> None:
        """Write the next event.

        Raises InvalidTransition when it cannot follow, LostRace when somebody else wrote this
        place first; either way nothing was written.
        """
        self.state.check(event)
        data = encode(event)
        if not self._log.append(self.next, data):
            raise LostRace(self._log.key(self.next))
        self.state.apply(event)
        self.next += 1
        if snapshots.due(self.next):
            snapshots.write(self._store, self.state, self.next, data)
