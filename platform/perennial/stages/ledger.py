"""The append-only log of a run. The key that already exists is the lock."""

from __future__ import annotations

import copy
from datetime import UTC, datetime

from perennial.errors import InputError
from perennial.stages.events import Event, decode, encode
from perennial.stages.machine import RunState
from perennial.store import Store

_FOLDER = "ledger"


class LostRace(Exception):
    """Another controller wrote this place in the ledger first."""


def now() -> str:
    """The time that an event carries."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Ledger:
    """A run's events in the store, and the state that they fold to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.events: list[Event] = []
        self.state = RunState()

    def read(self) -> RunState:
        """Fold in every event that was written since the last read."""
        written = {entry.key for entry in self._store.list(_FOLDER)}
        while (key := _key(len(self.events))) in written:
            event = self._event(key)
            self.state.apply(event)
            self.events.append(event)
        return self.state

    def _event(self, key: str) -> Event:
        try:
            return decode(self._store.read(key))
        except ValueError as wrong:
            first = str(wrong).splitlines()[-2].strip() if "\n" in str(wrong) else str(wrong)
            raise InputError(
                f"{self._store.url}/{key}",
                "",
                f"is not an event that this version knows ({first})",
                "restore it, or use the version of perennial that wrote it",
            ) from None

    def append(self, event: Event) -> None:
        """Write the next event.

        Raises InvalidTransition when it cannot follow, LostRace when somebody else wrote this
        place first; either way nothing was written.
        """
        after = copy.deepcopy(self.state)
        after.apply(event)
        if not self._store.create(_key(len(self.events)), encode(event)):
            raise LostRace(_key(len(self.events)))
        self.state = after
        self.events.append(event)


def _key(sequence: int) -> str:
    return f"{_FOLDER}/{sequence:012d}.json"
