"""Store folded states beside the ledger, so that reading costs its tail and not its length.

Snapshots only save time: deleting them changes nothing. A snapshot is used when this version wrote
it, and the event that it follows is the one that it names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from perennial.runs.state import RunState
from perennial.store import Log, Store
from perennial.store.stored_json import parse_json
from perennial.version import __version__

FOLDER = "ledger/snapshots"
EVERY_EVENTS = 200
_KEPT = 2


@dataclass(frozen=True)
class Snapshot:
    """The state after the first `events` entries of the ledger, the last of which is given."""

    events: int
    state: RunState
    last_event: bytes


def due(events: int) -> bool:
    """Return whether a snapshot is written after so many events."""
    return events % EVERY_EVENTS == 0


def write(store: Store, state: RunState, events: int, last_event: bytes) -> None:
    """Write the state after a number of entries, unless that snapshot exists; remove old ones.

    Args:
        store: the run's store.
        state: the folded state.
        events: number of entries that were folded.
        last_event: bytes of the last of them, whose hash ties the snapshot to this ledger.
    """
    document = {
        "shape": _shape(),
        "events": events,
        "last_event_sha256": hashlib.sha256(last_event).hexdigest(),
        "state": parse_json(_adapter().dump_json(state)),
    }
    store.create(_key(events), json.dumps(document).encode())
    for key in _keys(store)[:-_KEPT]:
        store.remove(key)


def newest(store: Store, log: Log, warn: Callable[[str], None]) -> Snapshot | None:
    """Read the newest snapshot that is valid.

    Args:
        store: the run's store.
        log: the ledger's entries.
        warn: called with a line about a snapshot that is not valid.

    Returns:
        The snapshot, or None where there is no valid one.
    """
    for key in reversed(_keys(store)):
        try:
            return _read(store, log, key)
        except FileNotFoundError:
            continue  # a newer one took its place since the listing
        except (ValueError, LookupError, TypeError) as wrong:
            problem = "of another form" if isinstance(wrong, ValidationError) else wrong
            warn(f"{key} is ignored: {problem}; the ledger is read instead")
    return None


def _read(store: Store, log: Log, key: str) -> Snapshot:
    document: dict[str, Any] = parse_json(store.read(key))
    if document["shape"] != _shape():
        raise ValueError("another version of perennial made it")
    events = int(document["events"])
    last = log.read(events - 1)
    if key != _key(events) or last is None:
        raise ValueError("it follows no event of this ledger")
    if hashlib.sha256(last).hexdigest() != document["last_event_sha256"]:
        raise ValueError("the event that it follows is another one")
    return Snapshot(events, _adapter().validate_python(document["state"]), last)


def _keys(store: Store) -> list[str]:
    return [info.key for info in store.list(FOLDER)]


def _key(events: int) -> str:
    return f"{FOLDER}/{events:012d}.json"


@cache
def _adapter() -> TypeAdapter[RunState]:
    return TypeAdapter(RunState)


@cache
def _shape() -> str:
    """Return a hash of the state's fields and of the version: other versions fold otherwise."""
    fields = json.dumps(_adapter().json_schema(), sort_keys=True)
    return hashlib.sha256(f"{__version__}\n{fields}".encode()).hexdigest()
