"""Store folded states beside the ledger, so that reading costs its tail and not its length.

Snapshots only save time: deleting them changes nothing. A snapshot is used when it has this
version's form, or one that is migrated to it, and the event that it follows is the one that it
names; any other is ignored, and the next one takes its place. It holds each thing once: plans and
measurements of stages stay in the events of the ledger, and the snapshot has the numbers of those.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from perennial.runs.entities import Stage
from perennial.runs.events import ScheduleRecord
from perennial.runs.state import RunState
from perennial.runs.trunk.stage_archive import (
    ReadEntry,
    StageArchive,
    StageEntries,
    StageIndex,
    StageRow,
    StoredStage,
)
from perennial.runs.trunk.trunk_sums import StoredSums
from perennial.store import Log, Store
from perennial.store.stored_json import parse_json

FOLDER = "ledger/snapshots"
EVERY_EVENTS = 200
FORMAT = 4
"""raised where the same events fold to another state, and where the state has other fields: then
`_MIGRATIONS` makes the new form of the old one, so that a new version does not read the past again.
The first, without a number, held plans and measurements too"""
_SCHEMA_OF_2 = "e0cfbf217caf2af6b72d3d3b2705fb3734a37a37e14b3d9def5944824c87bf5a"
"""digest of the fields of the last version that wrote format 2"""
_KEPT = 2
_IN_THE_LEDGER = {
    "stages",
    "abandoned",
    "losses",
    "stage_scores",
    "stage_samples",
    "verdicts",
    "draws",
}
"""fields of the state that are read from events when they are asked for"""


@dataclass(frozen=True)
class _Stages:
    """Every stage that was started; `entries` are those of the ledger about each, by its name."""

    trunk: list[StageRow]
    abandoned: list[StageRow]
    schedules: list[ScheduleRecord]
    entries: dict[str, StageEntries]
    sums: StoredSums


@dataclass(frozen=True)
class Snapshot:
    """The state after the first `events` entries of the ledger, the last of which is given.

    index: the entries about every stage.
    """

    events: int
    state: RunState
    index: StageIndex
    last_event: bytes


def due(events: int) -> bool:
    """Return whether a snapshot is written after so many events."""
    return events % EVERY_EVENTS == 0


def write(store: Store, state: RunState, index: StageIndex, events: int, last_event: bytes) -> None:
    """Write the state after a number of entries, unless that snapshot exists; remove old ones.

    Args:
        store: the run's store.
        state: the folded state.
        index: the entries about every stage.
        events: number of entries that were folded.
        last_event: bytes of the last of them, whose hash ties the snapshot to this ledger.
    """
    document = {
        "format": FORMAT,
        "events": events,
        "last_event_sha256": hashlib.sha256(last_event).hexdigest(),
        "state": _adapter().dump_python(state, mode="json", exclude=_IN_THE_LEDGER),
        "stages": asdict(_rows_of(state, index)),
    }
    store.create(_key(events), json.dumps(document).encode())
    for key in _keys(store)[:-_KEPT]:
        store.remove(key)


def _rows_of(state: RunState, index: StageIndex) -> _Stages:
    """Return the rows of all stages, each schedule once."""
    schedules: dict[str, int] = {}
    distinct: list[ScheduleRecord] = []

    def row(stage: Stage) -> StageRow:
        key = json.dumps(stage.schedule, sort_keys=True)
        if key not in schedules:
            schedules[key] = len(distinct)
            distinct.append(stage.schedule)
        return StageRow.of(stage, schedules[key])

    trunk, abandoned = [row(s) for s in state.stages], [row(s) for s in state.abandoned]
    return _Stages(trunk, abandoned, distinct, dict(index), StoredSums.of(state.passed_sums))


def newest(store: Store, log: Log, warn: Callable[[str], None], read: ReadEntry) -> Snapshot | None:
    """Read the newest snapshot that is valid.

    Args:
        store: the run's store.
        log: the ledger's entries.
        warn: called with a line about a snapshot that is not valid.
        read: reads an entry, when what it holds is asked for.

    Returns:
        The snapshot, or None where there is no valid one.
    """
    for key in reversed(_keys(store)):
        try:
            return _read(store, log, key, read)
        except FileNotFoundError:
            continue  # a newer one took its place since the listing
        except (ValueError, LookupError, TypeError) as wrong:
            problem = "of another form" if isinstance(wrong, ValidationError) else wrong
            warn(f"{key} is ignored: {problem}; the ledger is read instead")
    return None


def _read(store: Store, log: Log, key: str, read: ReadEntry) -> Snapshot:
    document = _migrate(parse_json(store.read(key)))
    events = int(document["events"])
    last = log.read(events - 1)
    if key != _key(events) or last is None:
        raise ValueError("it follows no event of this ledger")
    if hashlib.sha256(last).hexdigest() != document["last_event_sha256"]:
        raise ValueError("the event that it follows is another one")
    state = _adapter().validate_python(document["state"])
    rows = _rows_adapter().validate_python(document["stages"])
    index = StageIndex(rows.entries)
    archive = StageArchive(index, read)

    def stored(some: Sequence[StageRow]) -> list[Stage]:
        return [StoredStage(row, rows.schedules[row.schedule], archive) for row in some]

    state.stages, state.abandoned = stored(rows.trunk), stored(rows.abandoned)
    archive.attach(state)
    state.restore_sums(rows.sums.restored(state.stages))
    return Snapshot(events, state, index, last)


def _migrate(document: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot in this version's form.

    Raises ValueError where it has a form that no version migrates, as a later one's.
    """
    while (number := document.get("format")) != FORMAT:
        if number not in _MIGRATIONS:
            raise ValueError("another version of perennial made it")
        document = _MIGRATIONS[number](document)
    return document


def _from_format_2(document: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot of format 2 without the digest that bound it to one version."""
    if document.pop("shape") != _SCHEMA_OF_2:
        raise ValueError("another version of perennial made it")
    return document | {"format": 3}


def _from_format_3(document: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot of format 3; what it lacks, of searches after a gate, has its default."""
    return document | {"format": 4}


_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    2: _from_format_2,
    3: _from_format_3,
}
"""by the format that each begins from; it returns the next one"""


def _keys(store: Store) -> list[str]:
    return [info.key for info in store.list(FOLDER)]


def _key(events: int) -> str:
    return f"{FOLDER}/{events:012d}.json"


@cache
def _adapter() -> TypeAdapter[RunState]:
    return TypeAdapter(RunState)


@cache
def _rows_adapter() -> TypeAdapter[_Stages]:
    return TypeAdapter(_Stages)
