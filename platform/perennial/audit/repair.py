"""Mend a run's store: from a copy of it, and by setting aside what belongs to no run.

Nothing is deleted. What is replaced or does not belong is kept below `aside/`, under its own key
and the beginning of its digest.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perennial.audit.checks import ledger_key
from perennial.audit.finding import Finding
from perennial.audit.ledger_repair import plan_ledger
from perennial.audit.verify import verify
from perennial.errors import Busy
from perennial.runs.lease import STALE_SECONDS, Lease, read_heartbeat, this_process
from perennial.runs.ledger import FOLDER, HEAD, digest_of, now, read_head
from perennial.store import Log, Store
from perennial.training.checkpoint.manifest import digest

ASIDE = "aside"
_ROUNDS = 3
"""A manifest that was restored names files that may be missing too, and those files others."""


@dataclass
class Repair:
    """The changes to a store, and what is still wrong; with `acted` False, the changes planned.

    restored: keys of objects that were taken from the copy.
    set_aside: keys of objects that belong to no run.
    findings: what `verify` finds afterwards.
    """

    acted: bool
    restored: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return asdict(self)


def repair(store: Store, copy: Store | None, *, acts: bool = True) -> Repair:
    """Mend what can be mended: first the ledger, then what it names.

    Args:
        store: the run's store.
        copy: a copy of it, as far as there is one: a backup, a bucket's replica, old versions.
        acts: whether to write; otherwise the first round is planned alone.

    Raises:
        Busy: a process trains or tokenises, and lives.
        InputError: the store holds no run.
    """
    done = Repair(acts)
    with _alone(store) if acts else nullcontext():
        _repair_ledger(store, copy, done)
        verification = verify(store)
        for _ in range(_ROUNDS if acts else 1):
            if copy is None or not _restore_lost(store, copy, verification.lost, done):
                break
            verification = verify(store) if acts else verification
    done.findings = verification.findings
    return done


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Refuse to go on while another process writes to the run."""
    mine = Lease(store, "repairing", this_process("repair", now()))
    try:
        for name in ("training", "ingesting"):
            for info in store.list(f"leases/{name}"):
                beat = read_heartbeat(store, info.key)
                if beat is None or beat.holder.is_gone:
                    continue
                if mine.age_seconds(beat.modified) <= STALE_SECONDS:
                    raise Busy(f"{beat.holder} holds this run and lives: stop it first")
        yield
    finally:
        mine.give_back()


def _repair_ledger(store: Store, copy: Store | None, done: Repair) -> None:
    log = Log(store, FOLDER)
    mine = _read_entries(store)
    head = read_head(store)
    plan = plan_ledger(mine, _read_entries(copy) if copy else {}, head)
    done.set_aside += [ledger_key(number) for number in plan.set_aside]
    done.restored += [ledger_key(number) for number in plan.restore]
    if not done.acted:
        return
    for number in [*plan.set_aside, *(n for n in plan.restore if n in mine)]:
        _set_aside(store, log.key(number), digest_of(mine[number]))
    for number, data in plan.restore.items():
        log.append(number, data)
    if plan.lost is None and plan.head != head:
        store.write(HEAD, json.dumps(asdict(plan.head)).encode())


def _read_entries(store: Store) -> dict[int, bytes]:
    log = Log(store, FOLDER)
    entries = {number: log.read(number) for number in log.numbers()}
    return {number: data for number, data in entries.items() if data is not None}


def _set_aside(store: Store, key: str, sha256: str) -> None:
    """Keep an object's bytes in another place, and free its key."""
    with tempfile.TemporaryDirectory(prefix="perennial-repair-") as folder:
        local = Path(folder, "object")
        store.download(key, local)
        store.upload(local, f"{ASIDE}/{key}-{sha256[:12]}")
    store.remove(key)


def _restore_lost(store: Store, copy: Store, lost: dict[str, str], done: Repair) -> bool:
    """Copy what is lost or altered; return whether anything was.

    Args:
        store: the run's store.
        copy: a copy of it.
        lost: right digests by key; "" where nothing has it.
        done: gets the keys.
    """
    restored = []
    with tempfile.TemporaryDirectory(prefix="perennial-repair-") as folder:
        for key, sha256 in lost.items():
            local = Path(folder, hashlib.sha256(key.encode()).hexdigest())
            try:
                copy.download(key, local)
            except FileNotFoundError:
                continue
            if sha256 and digest(local) != sha256:
                continue
            restored.append(key)
            if done.acted:
                _replace(store, key, local)
            local.unlink()
    done.restored += restored
    return bool(restored)


def _replace(store: Store, key: str, local: Path) -> None:
    if store.exists(key):
        with tempfile.TemporaryDirectory(prefix="perennial-repair-") as folder:
            old = Path(folder, "object")
            store.download(key, old)
            _set_aside(store, key, digest(old))
    store.upload(local, key)
