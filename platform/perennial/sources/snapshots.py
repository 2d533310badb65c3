"""Snapshots of a source's state: a look costs the end of its log, however old the source is.

A source that polls hourly writes 8,760 entries a year, most of which say that nothing was new. A
snapshot is an object that may be lost: without a valid one the log is read from its beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from contextlib import suppress
from functools import cache

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from perennial.sources.state import SourceState
from perennial.store import Log, Store

EVERY_EVENTS = 50
_FOLDER = "state"
_FORMAT = 1


class _StoredSource(BaseModel):
    """An object of a snapshot: the state after so many events, and what it was made of.

    secrets: digest of the names of query parameters that are secret: files are known by addresses
        without them.
    last_event: digest of the last of the events.
    """

    model_config = ConfigDict(extra="forbid")

    format: int
    events: int
    last_event: str
    secrets: str
    state: dict[str, object]


def read_newest(store: Store, log: Log, secrets: Set[str]) -> tuple[SourceState, int] | None:
    """Return the newest state that was stored, and the number of events that it has; or None.

    None too where it is of another version, of other secrets, or of another log than is there.

    Args:
        store: the source's part of the run's store.
        log: the source's log.
        secrets: as the run file has them.
    """
    keys = [info.key for info in store.list(_FOLDER)]
    if not keys:
        return None
    try:
        stored = _StoredSource.model_validate_json(store.read(keys[-1]))
        last = log.read(stored.events - 1)
        wanted = (_FORMAT, _digest(*sorted(secrets)))
        if last is None or (stored.format, stored.secrets) != wanted:
            return None
        if stored.last_event != hashlib.sha256(last).hexdigest():
            return None
        state = _adapter().validate_python(stored.state)
    except (FileNotFoundError, ValidationError):
        return None
    state.secrets = secrets
    return state, stored.events


def write(store: Store, state: SourceState, events: int, last_event: bytes) -> None:
    """Store the state after so many events, in place of earlier ones; a failure changes nothing.

    Args:
        store: the source's part of the run's store.
        state: the state.
        events: number of the log's entries that it has.
        last_event: the last of them, as it lies in the log.
    """
    stored = _StoredSource(
        format=_FORMAT,
        events=events,
        last_event=hashlib.sha256(last_event).hexdigest(),
        secrets=_digest(*sorted(state.secrets)),
        state=_adapter().dump_python(state, mode="json", exclude={"secrets"}),
    )
    key = f"{_FOLDER}/{events:012d}.json"
    with suppress(OSError):  # the log is whole without it
        store.write(key, stored.model_dump_json().encode())
        for info in store.list(_FOLDER):
            if info.key < key:
                store.remove(info.key)


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


@cache
def _adapter() -> TypeAdapter[SourceState]:
    return TypeAdapter(SourceState)
