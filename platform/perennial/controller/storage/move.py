"""Move a run to another place: copy its store, check the copy, and let the old one refuse.

The run is in one place at any time. Until the copy is whole it has no first entry of the ledger,
without which there is no run; then the old ledger gets its last event, and the copy that entry.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.controller.storage.loans import carry_loans, repoint
from perennial.errors import InputError
from perennial.runs import lease, snapshots
from perennial.runs.events import TookOver
from perennial.runs.ledger import FOLDER, HEAD, MOVING, Head, Ledger, digest_of, now
from perennial.runs.storage.store_events import Moved
from perennial.store import Store, open_store
from perennial.store.borrowing import BORROWED, PINS
from perennial.store.stored_json import parse_json
from perennial.store.transfer import Copied, StoreCopy, transfer

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.runs.state import RunState

_VERB = "move"


@dataclass(frozen=True)
class Move:
    """A run that is in another place now.

    Attributes:
        source: URL of the store that it left; its objects stay, and every verb refuses it.
        target: URL of the store where it goes on.
        objects, size_bytes: of the store; 0 where it had moved before.
        copied: how many objects were copied now.
        inbox: URL of an inbox of its own, which stays where it is; "" for the store's.
    """

    source: str
    target: str
    objects: int
    size_bytes: int
    copied: int
    inbox: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return asdict(self)


def move(work: Workspace, place: str, progress: Copied = lambda _key, _bytes, _all: None) -> Move:
    """Copy a run's store to another place, check the copy, and go on there alone.

    Safe to repeat and to kill: what is there is compared and not copied again, and the run is in
    its old place until the copy is whole.

    Args:
        work: the run.
        place: folder or URL of the new store; empty, or begun by this command.
        progress: follows the bytes.

    Raises:
        Busy: another process trains, tokenises or holds the whole store, and lives.
        InputError: there is no run, it has moved elsewhere, or the place cannot be used.
        StorageError: something changes in the store while it is copied.
    """
    source, target = open_store(work.store.url), open_place(work.store, place)
    ledger = Ledger(source, work.log, is_left=True)
    ledger.read()
    _check(work, ledger, target)  # before anything is written
    with lease.hold_alone(source, _VERB, now()):
        ledger.read()
        has_moved = _check(work, ledger, target)
        if has_moved and target.exists(ledger.key(0)):
            target.remove(MOVING)
            repoint(source, target, work.log)
            return _done(work, target, StoreCopy())
        target.check()
        target.write(MOVING, json.dumps({"id": ledger.store_id}).encode())
        if not has_moved:
            # Workers that a killed controller left behind commit nothing more.
            ledger.transact(_claim)
        seen: dict[str, str] = {}
        result = transfer(source, target, _is_left, progress, seen)
        _copy_links(source, target)
        last = ledger.next - has_moved
        while True:
            entries = _copy_entries(source, target, ledger, last)
            if has_moved or _leave(ledger, target, last):
                break
            last = ledger.next  # a user decided something meanwhile
        # What was written until the run left: a corpus that landed, a store that borrows.
        result.copied += transfer(source, target, _is_left, seen=seen).copied
        carry_loans(source, target)
        _switch(source, target, ledger, last)
        repoint(source, target, work.log)
    result.objects += entries.objects + 1
    result.size_bytes += entries.size_bytes
    result.copied += entries.copied + 1
    return _done(work, target, result)


def _copy_links(source: Store, target: Store) -> None:
    """Have the links between folders of a store in its copy: MLflow finds releases by them."""
    if not (source.is_local and target.is_local):
        return
    for parent, folders, _ in os.walk(source.url):
        for link in (Path(parent, name) for name in folders):
            copy = Path(target.url, link.relative_to(source.url))
            if link.is_symlink() and not link.readlink().is_absolute() and not copy.is_symlink():
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(link.readlink(), target_is_directory=True)


def _copy_entries(source: Store, target: Store, ledger: Ledger, last: int) -> StoreCopy:
    """Copy the first entries of the ledger but for the very first, and write the head of them."""
    first, end = ledger.key(0), ledger.key(last)
    entries = transfer(source, target, lambda key: not first < key < end)
    head = Head(last, digest_of(source.read(ledger.key(last - 1))))
    target.write(HEAD, json.dumps(asdict(head)).encode())
    return entries


def _leave(ledger: Ledger, target: Store, last: int) -> bool:
    """Write that the run goes on in the target; return False where more was written meanwhile."""

    def decide(_: RunState) -> Moved | None:
        return Moved(at=now(), to=target.url) if ledger.next == last else None

    return ledger.transact(decide) is not None


def _switch(source: Store, target: Store, ledger: Ledger, last: int) -> None:
    """Copy the first entry, with which there is a run in the target."""
    first = ledger.key(0)
    transfer(source, target, lambda key: key != first)
    target.remove(MOVING)
    # They save time alone; one that counts the last event is of no use there.
    before, behind = f"{snapshots.FOLDER}/", f"{snapshots.FOLDER}/{last:012d}.json"
    transfer(source, target, lambda key: not before < key <= behind)


def plan_move(work: Workspace, place: str) -> list[str]:
    """Return what `move` would do; arguments and errors are its, and it reads only."""
    target = open_place(work.store, place)
    ledger = Ledger(work.store, work.log, is_left=True)
    ledger.read()
    if _check(work, ledger, target) and target.exists(ledger.key(0)):
        return []
    own = open_store(work.store.url)
    objects = [info for info in own.list() if not info.key.startswith(f"{lease.FOLDER}/")]
    size = sum(info.size_bytes for info in objects)
    return [
        f"copy {len(objects):,} objects of {size:,} bytes to {target.url}, and compare them",
        f"let {work.store.url} refuse every command, and name {target.url}",
    ]


def open_place(
    store: Store, place: str, where: str = "command line", field: str = "PLACE"
) -> Store:
    """Return the store at another place.

    Args:
        store: a run's store.
        place: folder or URL.
        where, field: that name it, for messages.

    Raises:
        InputError: it is no store, or overlaps with that of the run.
    """
    target = open_store(place)
    old, new = (_root(its) for its in (store, target))
    if new == old or new.startswith(f"{old}/") or old.startswith(f"{new}/"):
        raise InputError(
            where, field, f"{target.url} and {store.url} overlap",
            "name a place outside of the run's store", code="place-overlaps",
        )  # fmt: skip
    return target


def _root(store: Store) -> str:
    return str(Path(store.url).resolve()) if store.is_local else store.url


def _check(work: Workspace, ledger: Ledger, target: Store) -> bool:
    """Return whether the run has moved to the target before.

    Raises InputError where there is no run, where it moved elsewhere, and where the target is
    neither empty nor of an earlier try.
    """
    if not ledger.next:
        raise InputError(
            work.where, "", f"there is no run in {work.store.url}",
            "move what was begun with `perennial run`", code="no-run-in-store",
        )  # fmt: skip
    moved_to = ledger.state.store.moved_to
    if moved_to and moved_to != target.url:
        work.ledger.read()  # refuses
    is_ours = read_mark(target) == ledger.store_id
    has_run = target.exists(ledger.key(0))
    if moved_to and (has_run or is_ours):
        return True
    if has_run or not (is_ours or target.is_empty()):
        raise InputError(
            "command line", "PLACE", f"{target.url} is not empty",
            "name an empty folder or prefix, or one that is still to be made",
            code="place-not-empty",
        )  # fmt: skip
    return bool(moved_to)


def read_mark(target: Store) -> str:
    """Return the id of the run that an earlier try was copying; "" for none."""
    try:
        document = parse_json(target.read(MOVING))
    except (OSError, ValueError):
        return ""
    return str(document.get("id", "")) if isinstance(document, dict) else ""


def _claim(state: RunState) -> TookOver:
    return TookOver(at=now(), epoch=state.epoch + 1, controller=f"{_VERB}:{os.getpid()}")


def _is_left(key: str) -> bool:
    """Return whether an object is no plain copy: of the ledger, or about the place itself."""
    return key.startswith((f"{FOLDER}/", f"{lease.FOLDER}/", f"{PINS}/")) or key in (
        MOVING,
        BORROWED,
    )


def _done(work: Workspace, target: Store, result: StoreCopy) -> Move:
    return Move(
        source=work.store.url,
        target=target.url,
        objects=result.objects,
        size_bytes=result.size_bytes,
        copied=result.copied,
        inbox=work.spec.inbox or "",
    )
