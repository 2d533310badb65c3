"""Read and append the event log of a run; an entry's key is created once, which is the lock.

Each entry carries the digest of the one before, and `leases/head.json` the number and digest of the
last. So an entry that is absent is never taken for one that was not written yet, and one that was
replaced, repeated or brought from another run is seen by every reader.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TypeVar

from perennial.errors import InputError, InvalidTransition, LogGap, LostRace, NewerSchema
from perennial.runs import snapshots, witnesses
from perennial.runs.event_codec import decode, encode
from perennial.runs.events import Event
from perennial.runs.state import RunState
from perennial.runs.trunk.stage_archive import StageIndex
from perennial.store import Log, Store
from perennial.store.stored_json import parse_json
from perennial.training.checkpoint.ownership import Fence

FOLDER = "ledger"
MOVING = "moving.json"
"""in a store that `move` or `fork` is filling: it holds no run until that is complete"""
HEAD = "leases/head.json"
"""outside of the ledger's folder, so that what removes a whole folder does not remove both"""
_MOST_EVENTS = 10**12  # the keys of entries have twelve digits
_SHA256 = re.compile("[0-9a-f]{64}")
E = TypeVar("E", bound=Event)
_REMEDY = (
    "nothing is written; `perennial verify` lists what is wrong, `perennial repair` mends it, with "
    "--from and a copy of the store where an entry is lost"
)
_BROKEN = (InvalidTransition, ValueError, LookupError, TypeError, AttributeError, StopIteration)
"""what folding an event that does not belong to this ledger may raise"""


def now() -> str:
    """Return the present time as events carry it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def moment(at: str) -> str:
    """Return an event's time for users."""
    return f"{at[:16].replace('T', ' ')} UTC"


def digest_of(data: bytes) -> str:
    """Return the digest by which the next entry names this one."""
    return hashlib.sha256(data).hexdigest()


def _number_of(folder: str) -> int:
    """Return the number of a stage, by its folder."""
    number = folder.rpartition("/")[2].partition("-")[0]
    return int(number) if number.isdecimal() else -1


@dataclass(frozen=True)
class Head:
    """The end of a ledger.

    events: number of its entries.
    sha256: digest of the last of them, "" without one.
    """

    events: int = 0
    sha256: str = ""

    @property
    def is_possible(self) -> bool:
        """Return whether any ledger can have this end."""
        if not self.events:
            return not self.sha256
        return 0 < self.events < _MOST_EVENTS and bool(_SHA256.fullmatch(self.sha256))


def read_head(store: Store) -> Head:
    """Return the head that was stored last; an empty one where none can be read.

    It may be behind the ledger, whose last writer was killed before it stored the head. It is never
    before it.
    """
    try:
        document = parse_json(store.read(HEAD))
        return Head(int(document["events"]), str(document["sha256"]))
    except (FileNotFoundError, ValueError, LookupError, TypeError, OverflowError):
        return Head()


def check_follows(before: str | None, head: Head, chained: bool) -> None:
    """Raise ValueError for an entry that was not written behind the head.

    Args:
        before: digest that the entry carries; None in those of older versions.
        head: of the entries before it.
        chained: whether one of them carries a digest; there is no way back from that.
    """
    if before is None and chained:
        raise ValueError("it carries no digest, and the entries before it do")
    if before is not None and before != head.sha256:
        follows = f"follows {before[:12]}" if before else "is the first of its ledger"
        raise ValueError(
            f"it {follows}, and the entry before it is {head.sha256[:12] or 'none'}: it is from "
            "another ledger, or is repeated, or the one before it was replaced"
        )


class Ledger:
    """A run's events in the store, and the state that they fold to.

    Args:
        store: the run's store.
        log: called with a line about every snapshot that is ignored.
        is_left: read it also where the run has moved to another store.
    """

    def __init__(
        self,
        store: Store,
        log: Callable[[str], None] = lambda _: None,
        *,
        is_left: bool = False,
    ) -> None:
        self._store = store
        self._log = Log(store, FOLDER)
        self._log_line = log
        self._is_left = is_left
        self._forget()

    def _forget(self) -> None:
        self.head = Head()
        self.state = RunState()
        self._stages = StageIndex()
        self._chained = False

    @property
    def next(self) -> int:
        """Return the number of the entry that would be appended next."""
        return self.head.events

    def read(self) -> RunState:
        """Fold in the events since the last read: one request per event, and one listing.

        Raises:
            InputError: an entry is missing, unreadable, or does not follow the one before it. The
                next call reads from the beginning, so that it sees what was repaired. Or the run
                has moved to another store.
        """
        try:
            if self.next:
                self._fold_tail()
            else:
                self._read_from_snapshot()
        except InputError:
            self._forget()
            raise
        if (to := self.state.store.moved_to) and not self._is_left:
            raise InputError(
                self._store.url, "", f"this run has moved to {to}, and goes on there alone",
                f"write `store: {to}` into the run file", code="store-moved",
            )  # fmt: skip
        return self.state

    @property
    def store_id(self) -> str:
        """Return what names the store wherever it lies; takes a request where a run is old."""
        if self.state.store.id or not self.next:
            return self.state.store.id
        first = self._log.read(0)
        return "" if first is None else digest_of(first)[:32]

    def _read_from_snapshot(self) -> None:
        snapshot = snapshots.newest(self._store, self._log, self._log_line, self.read_entry)
        if snapshot is not None:
            self.head = Head(snapshot.events, digest_of(snapshot.last_event))
            self.state, self._stages = snapshot.state, snapshot.index
            self._chained = decode(snapshot.last_event).before is not None
        self._fold_tail()
        if not self.next:
            self._check_arrived()
        self._check_head(read_head(self._store))
        if self._lost_end():
            self._fold_tail()  # written since
        if lost := self._lost_end():
            raise self._broken(*lost)

    def _lost_end(self) -> tuple[str, str] | None:
        """Return key and problem of an entry that a checkpoint shows to be lost, or None.

        A head that is lost too cannot show it. The newest stage's checkpoints do, and those of a
        stage that the ledger did not start.
        """
        if not self.next:
            has_checkpoints = self._store.list(witnesses.TRUNK)
            missing = "is missing, and there are checkpoints"
            return (self._log.key(0), missing) if has_checkpoints else None
        started = [stage.folder for stage in self.state.started_stages]
        newest = max(started, key=_number_of, default="")
        for witness in witnesses.newest_witnesses(self._store, newest, started):
            folder = witness.checkpoint.rpartition("/")[0]
            if witness.events > self.next or folder not in started:
                return self._log.key(self.next), f"is missing: {witness.checkpoint} was trained"
            if not self._names(Head(witness.events, witness.sha256)):
                what = f"is not the entry that {witness.checkpoint} was trained behind"
                return self._log.key(witness.events - 1), what
        return None

    def _check_head(self, stored: Head) -> None:
        if not stored.is_possible:
            raise self._broken(HEAD, f"names {stored.events} entries, which no ledger can have")
        if stored.events > self.next:
            self._fold_tail()  # written since
        if stored.events > self.next:
            last = self._log.key(stored.events - 1)
            raise self._broken(self._log.key(self.next), f"is missing, and {last} was written")
        if not self._names(stored):
            key = self._log.key(stored.events - 1)
            raise self._broken(key, f"is not the entry that {HEAD} names: it was replaced")

    def _names(self, end: Head) -> bool:
        """Return whether an end is, or was, one of this ledger; takes a request where it was."""
        if end.events in (0, self.next):
            return not end.events or end.sha256 == self.head.sha256
        data = self._log.read(end.events - 1)
        return data is not None and digest_of(data) == end.sha256

    def _fold_tail(self) -> None:
        try:
            for number, data in self._log.tail(self.next):
                self._fold(number, data)
        except LogGap as gap:
            if not self.next:
                self._check_arrived()
            raise self._broken(gap.missing, f"is missing, and {gap.later} is there") from None

    def _check_arrived(self) -> None:
        if self._store.exists(MOVING):
            raise InputError(
                self._store.url, "", "`perennial move` or `fork` is filling it, or was stopped",
                "repeat that command, which goes on where it was", code="store-arriving",
            )  # fmt: skip

    def _fold(self, number: int, data: bytes) -> None:
        try:
            entry = decode(data)
            check_follows(entry.before, self.head, self._chained)
            self.state.apply(entry.event)
        except NewerSchema as newer:
            raise self._unknown(number, newer) from None
        except _BROKEN as wrong:
            why = " ".join(str(wrong).split()) or type(wrong).__name__
            key = self._log.key(number)
            raise self._broken(key, f"cannot follow the entry before it ({why})") from None
        self._stages.note(number, entry.event, self.state)
        self._move(number, data, chained=entry.before is not None)

    def read_entry(self, number: int, *kinds: type[E]) -> E:
        """Return the event of an entry that was folded before; takes a request.

        Args:
            number: of the entry.
            kinds: of which one is its.

        Raises:
            InputError: it is missing, unreadable or of another kind.
        """
        key, data = self._log.key(number), self._log.read(number)
        if data is None:
            raise self._broken(key, "is missing, and later ones are there")
        try:
            event = decode(data).event
        except NewerSchema as newer:
            raise self._unknown(number, newer) from None
        except ValueError as wrong:
            raise self._broken(key, f"cannot be read ({wrong})") from None
        if not isinstance(event, kinds):
            raise self._broken(key, f"is {event.kind!r}, and was another entry: it was replaced")
        return event

    def _unknown(self, number: int, newer: NewerSchema) -> InputError:
        return InputError(
            f"{self._store.url}/{self._log.key(number)}",
            "",
            f"is not an event that this version knows ({newer})",
            "use the version of perennial that wrote it, or a later one",
            code="ledger-unreadable",
        )

    def _move(self, number: int, data: bytes, *, chained: bool) -> None:
        self.head = Head(number + 1, digest_of(data))
        self._chained = chained

    def _broken(self, key: str, problem: str) -> InputError:
        return InputError(f"{self._store.url}/{key}", "", problem, _REMEDY, code="ledger-broken")

    def key(self, number: int) -> str:
        """Return the key of an entry."""
        return self._log.key(number)

    def fence(self, kind: str, name: str = "") -> Fence:
        """Return the check by which a job may commit until a claim follows the entries so far.

        Args:
            kind: of the events that are claims.
            name: what they claim; "" for a claim of the whole run.
        """
        return Fence(self.next, kind, name, self.head.sha256)

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
        lost_at = -1
        while True:
            event = decide(self.read())
            if event is None:
                return None
            try:
                self.append(event)
            except LostRace as lost:
                if self.next == lost_at:  # read again since, and still not there
                    raise self._broken(str(lost), "is taken, and is no object") from None
                lost_at = self.next
                continue
            return event

    def append(self, event: Event) -> None:
        """Write the next event, and then the head.

        Raises:
            InvalidTransition: it cannot follow; nothing was written.
            ValueError: it holds a number that is not finite; nothing was written.
            LostRace: another process wrote this entry first; nothing was written.
        """
        self.state.check(event)
        data = encode(event, self.head.sha256)
        if not self._log.append(self.next, data):
            raise LostRace(self._log.key(self.next))
        self.state.apply(event)
        self._stages.note(self.next, event, self.state)
        self._move(self.next, data, chained=True)
        # The event is written: what only helps to read it must not make a failure of it.
        with suppress(OSError):
            # A plain write: of two that cross each other the earlier may stay; it promises less.
            self._store.write(HEAD, json.dumps(asdict(self.head)).encode())
            if snapshots.due(self.next):
                snapshots.write(self._store, self.state, self._stages, self.next, data)
