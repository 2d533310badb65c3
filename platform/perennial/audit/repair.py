"""Mend a run's store: from a copy of it, and by setting aside what belongs to no run.

Nothing is deleted. What is replaced or does not belong is kept below `aside/`, under its own key
and the beginning of its digest.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perennial.audit.checks import ledger_key
from perennial.audit.finding import Finding
from perennial.audit.ledger_repair import LedgerEvidence, plan_ledger
from perennial.audit.retraining import RetrainedCheckpoint, Retraining
from perennial.audit.verify import verify
from perennial.errors import InputError
from perennial.runs.lease import hold_alone
from perennial.runs.ledger import FOLDER, HEAD, digest_of, now, read_head
from perennial.runs.witnesses import read_named
from perennial.store import Log, Store
from perennial.store.aside import replace_object, set_aside
from perennial.training.checkpoint.manifest import digest

_ROUNDS = 3
"""A manifest that was restored names files that may be missing too, and those files others."""


@dataclass
class Repair:
    """The changes to a store, and what is still wrong; with `acted` False, the changes planned.

    restored: keys of objects that were taken from the copy.
    set_aside: keys of objects that belong to no run.
    corrected: what was wrong about the ledger's head, where it was.
    retrained: damaged checkpoints that were trained again, or why they were not.
    findings: what `verify` finds afterwards.
    """

    acted: bool
    restored: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    corrected: list[str] = field(default_factory=list)
    retrained: list[RetrainedCheckpoint] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return asdict(self)


def repair(
    store: Store, copy: Store | None, *, acts: bool = True, retraining: Retraining | None = None
) -> Repair:
    """Mend what can be mended: first the ledger, then what it names.

    Args:
        store: the run's store.
        copy: a copy of it, as far as there is one: a backup, a bucket's replica, old versions.
        acts: whether to write; otherwise the first round is planned alone.
        retraining: trains damaged checkpoints again that no copy has; None leaves them.

    Raises:
        Busy: a process trains or tokenises, and lives.
        InputError: the store holds no run, or the copy is none of this run.
    """
    if copy is not None:
        _check_copy(store, copy)
    done = Repair(acts)
    with hold_alone(store, "repair", now()) if acts else nullcontext():
        lost = _repair_ledger(store, copy, done)
        verification = verify(store)
        for _ in range(_ROUNDS if acts else 1):
            if copy is None or not _restore_lost(store, copy, verification.lost, done):
                break
            verification = verify(store) if acts else verification
        if retraining is not None and not verification.story.findings:
            done.retrained = retraining.retrain(verification, acts=acts)
            if acts and any(not its.code for its in done.retrained):
                verification = verify(store)
    done.findings = list(verification.findings)
    if lost is not None and lost.key not in {finding.key for finding in done.findings}:
        done.findings.insert(0, lost)
    return done


def _check_copy(store: Store, copy: Store) -> None:
    """Refuse what cannot be a copy of the store."""
    same = store.url == copy.url
    if store.is_local and copy.is_local:
        same = Path(store.url).resolve() == Path(copy.url).resolve()
    if same:
        raise _no_copy(copy, "is the store itself", "itself")
    if not Log(copy, FOLDER).numbers():
        raise _no_copy(copy, "there is no run in it", "no-run")


def _no_copy(copy: Store, problem: str, kind: str) -> InputError:
    return InputError(
        "--from", copy.url, problem, "name a copy of this run's store", code=f"repair-from-{kind}"
    )


def _repair_ledger(store: Store, copy: Store | None, done: Repair) -> Finding | None:
    """Mend the ledger as far as it can be; return what is lost."""
    log = Log(store, FOLDER)
    own = _read_evidence(store)
    plan = plan_ledger(own, LedgerEvidence() if copy is None else _read_evidence(copy))
    if copy is not None and not plan.is_of_this_run:
        raise _no_copy(copy, "no entry of its ledger is one of this run's", "another-run")
    done.set_aside += [ledger_key(number) for number in plan.set_aside]
    done.restored += [ledger_key(number) for number in plan.restore]
    wrong = plan.wrong_head(own)
    done.corrected += [wrong] if wrong else []
    if not done.acted:
        return plan.lost
    for number in [*plan.set_aside, *(n for n in plan.restore if n in own.entries)]:
        set_aside(store, log.key(number), digest_of(own.entries[number]))
    for number, data in plan.restore.items():
        if not log.append(number, data):
            raise _taken(store, log.key(number))
    if plan.lost is None and plan.head != own.head:
        try:
            store.write(HEAD, json.dumps(asdict(plan.head)).encode())
        except IsADirectoryError:
            raise _taken(store, HEAD) from None
    return plan.lost


def _taken(store: Store, key: str) -> InputError:
    return InputError(
        f"{store.url}/{key}", "", "its place is taken by what is no object",
        "move that away", code="repair-place-taken",
    )  # fmt: skip


def _read_evidence(store: Store) -> LedgerEvidence:
    log = Log(store, FOLDER)
    entries = {number: log.read(number) for number in log.numbers()}
    present = {number: data for number, data in entries.items() if data is not None}
    return LedgerEvidence(present, read_head(store), read_named(store))


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
                replace_object(store, key, local)
            local.unlink()
    done.restored += restored
    return bool(restored)
