"""Hold a run against other processes: a heartbeat in the store says that its holder lives.

The ledger is the lock: the process that appends the claim holds it, and the claim names an object
of its own, `leases/<name>/<id>.json`, which it alone writes, again and again. A holder that ends
removes it. One that is killed leaves it, and it is free once the process is gone from this machine,
or the object is older than `STALE_SECONDS` on the storage's own clock: no two machines have the
same.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from perennial.errors import Busy
from perennial.store import Store
from perennial.store.stored_json import parse_json

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
WATCH_SECONDS = 1.0
FOLDER = "leases"
REPAIRING = "repairing"
"""name of the lease of who holds the whole store"""
BESIDE = "beside"
"""name of the leases of those who release or measure beside the trunk, any number at a time"""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease.

    machine: host, start of the machine, and table of processes; "" where it cannot be known.
    process: its number in that table.
    began: when it began, in the table's own units; numbers are used again.
    verb: what it does.
    since: UTC time at which it took the lease.
    """

    host: str
    machine: str
    process: int
    began: str
    verb: str
    since: str

    def __str__(self) -> str:
        return f"`perennial {self.verb}` on {self.host} (process {self.process})"

    @property
    def is_here(self) -> bool:
        """Return whether it is, or was, a process of this machine."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def is_gone(self) -> bool:
        """Return whether it was a process of this machine that has ended."""
        return self.is_here and _began(self.process) != self.began


@dataclass(frozen=True)
class Heartbeat:
    """A lease as it is in the store: its holder, and the storage's time of the last write."""

    holder: Holder
    modified: datetime


def this_process(verb: str, since: str) -> Holder:
    """Return this process as a holder.

    Args:
        verb: what it does.
        since: the present UTC time.
    """
    pid = os.getpid()
    return Holder(socket.gethostname(), _machine(), pid, _began(pid), verb, since)


def read_heartbeat(store: Store, key: str) -> Heartbeat | None:
    """Return the lease at a key; None where there is none: it was given back, or never written."""
    if not key:
        return None
    try:
        holder = Holder(**parse_json(store.read(key)))
        words = (holder.host, holder.machine, holder.began, holder.verb, holder.since)
        if not isinstance(holder.process, int) or not all(isinstance(word, str) for word in words):
            return None
        return Heartbeat(holder, store.info(key).modified)
    except (FileNotFoundError, ValueError, TypeError):
        return None


class Lease:
    """A lease that this process writes until it is given back.

    Args:
        store: the run's store.
        name: what is held: `training`, `ingesting`, `BESIDE` or `REPAIRING`.
        holder: this process.
    """

    def __init__(self, store: Store, name: str, holder: Holder) -> None:
        self.key = f"{FOLDER}/{name}/{uuid.uuid4().hex}.json"
        self._store = store
        self._data = json.dumps(asdict(holder)).encode()
        self._ended = threading.Event()
        store.write(self.key, self._data)
        self._thread = threading.Thread(target=self._beat, name=f"perennial-{name}", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # the next one may pass; until then the lease grows old
                self.beat()

    def beat(self) -> None:
        """Write the lease again; its time of writing is the storage's present time."""
        self._store.write(self.key, self._data)

    def give_back(self) -> None:
        """Stop the heartbeat and remove the lease; the next process finds it free."""
        self._ended.set()
        self._thread.join()  # a write behind the removal would bring it back
        with suppress(OSError):
            self._store.remove(self.key)

    def age_seconds(self, modified: datetime) -> float:
        """Return how long ago an object was written, on the storage's clock."""
        return (self.written() - modified).total_seconds()

    def written(self) -> datetime:
        """Return when this lease was written last, on the storage's clock."""
        return self._store.info(self.key).modified

    def sweep(self) -> None:
        """Remove the leases that processes left behind when they were killed."""
        for info in self._store.list(self.key.rpartition("/")[0]):
            if self.age_seconds(info.modified) > STALE_SECONDS:
                self._store.remove(info.key)


class HeartbeatWatch:
    """Watches one lease, and says when its holder has stopped.

    A heartbeat may lie in the future: the storage's clock was set back, or a copy brought it along.
    It has stopped when it does not change for `STALE_SECONDS` while it is watched.

    Args:
        mine: a lease of this process, whose time of writing is the storage's present time.
    """

    def __init__(self, mine: Lease) -> None:
        self._mine = mine
        self._seen: datetime | None = None
        self._since: datetime | None = None

    def has_stopped(self, beat: Heartbeat) -> bool:
        """Return whether a heartbeat is too old, or lies ahead and did not change for as long."""
        age = self._mine.age_seconds(beat.modified)
        if age >= -STALE_SECONDS:
            return age > STALE_SECONDS
        if self._seen != beat.modified or self._since is None:
            self._seen, self._since = beat.modified, self._mine.written()
        return self._mine.age_seconds(self._since) > STALE_SECONDS

    def lies_ahead(self, beat: Heartbeat) -> bool:
        """Return whether a heartbeat lies in the future by more than a living one's can."""
        return self._mine.age_seconds(beat.modified) < -STALE_SECONDS


def living_holder(store: Store, mine: Lease, name: str) -> Holder | None:
    """Return a process that holds a lease of a name and lives, or None.

    Waits only for a heartbeat that lies in the future, until it changes or has stopped.

    Args:
        store: the run's store.
        mine: a lease of this process.
        name: what is held.
    """
    for info in store.list(f"{FOLDER}/{name}"):
        watch = HeartbeatWatch(mine)
        while (beat := read_heartbeat(store, info.key)) and not beat.holder.is_gone:
            if watch.has_stopped(beat):
                break
            if not watch.lies_ahead(beat) or beat.holder.is_here or beat.modified != info.modified:
                return beat.holder
            time.sleep(WATCH_SECONDS)
            mine.beat()
    return None


@contextmanager
def announce(store: Store, verb: str, since: str) -> Iterator[Lease]:
    """Let every other process find that this one has the whole store to itself.

    Args:
        store: the run's store.
        verb: what this process does.
        since: the present UTC time.
    """
    mine = Lease(store, REPAIRING, this_process(verb, since))
    try:
        yield mine
    finally:
        mine.give_back()


@contextmanager
def hold_alone(store: Store, verb: str, since: str) -> Iterator[None]:
    """Hold a whole store, so that no other process writes to the run.

    Args:
        store: the run's store.
        verb: what this process does.
        since: the present UTC time.

    Raises:
        Busy: another process trains, tokenises, releases, measures or holds the whole store, and
            lives.
    """
    with announce(store, verb, since) as mine:
        for info in store.list(f"{FOLDER}/{REPAIRING}"):
            beat = None if info.key == mine.key else read_heartbeat(store, info.key)
            if beat and not beat.holder.is_gone and not HeartbeatWatch(mine).has_stopped(beat):
                raise Busy(f"{beat.holder} has this run to itself: wait until it ends")
        for name in ("training", "ingesting", BESIDE):
            if holder := living_holder(store, mine, name):
                raise Busy(f"{holder} holds this run and lives: stop it first")
        mine.sweep()
        yield


@cache
def _machine() -> str:
    # Pods on one node share the boot, and each may have a process 1: their tables differ.
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(process: int) -> str:
    """Return when a process of this machine began; "" where there is none."""
    try:
        # The second field is the command in brackets, which may hold blanks and brackets itself.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
