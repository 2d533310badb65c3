"""Fork a run: begin another one at a checkpoint, which borrows what it has in common with it.

The new ledger begins with the other run's entries, byte for byte, up to the stage of the
checkpoint, so that all that was planned and proved rests on what it rested on. What these entries
name stays where it is, and is read there.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from perennial.config.changes import check_held, check_pinned
from perennial.controller.release import find_step
from perennial.controller.storage.move import open_place
from perennial.corpora.erasing.tombstone import FOLDER as TOMBSTONES
from perennial.corpora.erasing.tombstone import key_of
from perennial.errors import InputError
from perennial.evaluation.kept_samples import FOLDER as SAMPLES
from perennial.evaluation.kept_samples import SampleList
from perennial.runs.event_codec import decode, encode
from perennial.runs.events import Erased, Event, Started
from perennial.runs.ledger import FOLDER, HEAD, MOVING, Head, digest_of, now
from perennial.runs.state import RunState
from perennial.runs.storage.store_events import Forked
from perennial.runs.trunk.rewinding import is_on_trunk
from perennial.schedules import from_dict
from perennial.store import Log, Store, open_store
from perennial.store.borrowing import (
    Loan,
    place_from,
    read_borrowed,
    write_borrowed,
    write_pin,
)
from perennial.store.stored_json import parse_json
from perennial.store.transfer import have_object
from perennial.training.checkpoint.manifest import folder_of, read_manifest
from perennial.training.checkpoint.same_plan import check_same_plan

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.controller.context import Workspace
    from perennial.runs.state import Stage

_WRITES_AT_ONCE = 8


@dataclass(frozen=True)
class Fork:
    """A run that begins where another one stands, or stood.

    Attributes:
        store: URL of its store.
        parent: URL of the other run's.
        stage, step: the checkpoint from which it goes on.
        goes_on: corpora whose stage goes on from that step; none where it is the stage's end.
        corpora: that it has in common with the other run.
        held: those of them that wait for `retry` or `refuse`.
        borrowed: keys of the folders that stay where they are.
    """

    store: str
    parent: str
    stage: str
    step: int
    goes_on: tuple[str, ...]
    corpora: tuple[str, ...]
    held: tuple[str, ...]
    borrowed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True)
class _Beginning:
    """The beginning of a new run.

    entries: of the other run's ledger. event: that follows them.
    erased: what the other run erased since, of what is borrowed.
    state: behind all of them.
    """

    entries: list[bytes]
    event: Forked
    erased: list[Erased]
    state: RunState


def fork(work: Workspace, at: str, spec: RunSpec, where: str) -> Fork:
    """Begin a run at a checkpoint of another one. Safe to repeat and to kill.

    The other run may go on meanwhile. Repeated once that has moved, it names the new place of it.

    Args:
        work: the run that is left.
        at: `STAGE@STEP`, or `STAGE` for its end.
        spec: the new run's file.
        where: path of that file, for messages.

    Raises:
        Busy: another process has the whole store of the run to itself.
        InputError: there is no such checkpoint, the new run differs in what cannot be changed, or
            its store is not empty.
    """
    planned, beginning = _plan(work, at, spec, where)
    target, event = open_store(planned.store), beginning.event
    is_whole = target.exists(Log(target, FOLDER).key(0))
    if not is_whole:
        target.check()
        mark = event.model_dump(mode="json", include={"id", "parent", "stage", "step"})
        target.write(MOVING, json.dumps(mark).encode())
    loans = _lend(work.store, target, event.id, _still_borrowed(target, planned, is_whole))
    # Of this and of who has the store to himself, at least one sees the other.
    work.check_repairing()
    if not is_whole:
        # What is borrowed may have been erased or removed before it was pinned.
        planned, beginning = _plan(work, at, spec, where)
    write_borrowed(target, loans)
    if not is_whole:
        _copy_small(work.store, target, beginning)
        _write_ledger(target, beginning)
    target.remove(MOVING)
    return planned


def _still_borrowed(target: Store, planned: Fork, is_whole: bool) -> Sequence[str]:
    """Return what a run borrows: of one that is there already, only what it did not give back."""
    loans = read_borrowed(target) if is_whole else []
    kept = {folder for loan in loans for folder in loan.folders}
    return [folder for folder in planned.borrowed if not loans or folder in kept]


def plan_fork(work: Workspace, at: str, spec: RunSpec, where: str) -> Fork:
    """Return what `fork` would do; arguments and errors are its, and it reads only."""
    return _plan(work, at, spec, where)[0]


def _plan(work: Workspace, at: str, spec: RunSpec, where: str) -> tuple[Fork, _Beginning]:
    state = work.ledger.read()
    if state.spec is None:
        raise InputError(
            work.where, "", f"there is no run in {work.store.url}",
            "fork what was begun with `perennial run`", code="no-run-in-store",
        )  # fmt: skip
    target = open_place(work.store, spec.store, where, "store")
    if work.store.is_local and not target.is_local:
        raise InputError(
            where, "store", f"a store in a bucket cannot borrow from {work.store.url}",
            "`perennial move` that run into the bucket first", code="fork-from-folder",
        )  # fmt: skip
    if spec.name == state.spec["name"]:
        raise InputError(
            where, "name", f"{spec.name!r} is the name of the run that is forked",
            "give the new run a name of its own", code="fork-same-name",
        )  # fmt: skip
    check_pinned(where, work.store.url, {**state.spec, "name": spec.name}, spec)
    name, mark, text = at.partition("@")
    stages = {stage.name: stage for stage in state.started_stages}
    if name not in stages:
        raise InputError(
            "command line", "STAGE", f"the run has no stage {name!r}",
            f"its stages: {', '.join(stages) or 'none yet'}", code="stage-missing",
        )  # fmt: skip
    stage = stages[name]
    step = find_step(work.store, stage, text if mark else None, "STAGE")
    key = folder_of(stage.folder, step)
    check_same_plan(key, read_manifest(work.store, key), stage.mix, from_dict(stage.schedule))
    entries, behind = _read_entries(work.store, stage, step)
    goes_on = () if behind.has_passed(stage) else stage.corpora
    if goes_on:
        check_held(stage.name, stage.settings, spec, where)
    document = spec.model_dump(mode="json") | {"store": "."}
    event = Forked(
        at=now(), id=uuid.uuid4().hex, parent=work.ledger.store_id,
        stage=name, step=step, spec=document,
    )  # fmt: skip
    event = event.model_copy(update={"id": _read_id(target, event, len(entries)) or event.id})
    behind.apply(event)
    is_whole = target.exists(Log(target, FOLDER).key(0))
    erased = [] if is_whole else _follow_erasures(work, len(entries), behind)
    common = [corpus for corpus in behind.corpora.values() if corpus.sequences]
    planned = Fork(
        store=target.url,
        parent=work.store.url,
        stage=name,
        step=step,
        goes_on=goes_on,
        corpora=tuple(corpus.name for corpus in common),
        held=tuple(corpus.name for corpus in common if corpus.state == "held"),
        borrowed=tuple(dict.fromkeys(_list_borrowed(work.store, behind, key))),
    )
    return planned, _Beginning(entries, event, erased, behind)


def _follow_erasures(work: Workspace, number: int, state: RunState) -> list[Erased]:
    """Apply what was erased of borrowed corpora behind the checkpoint, and return it.

    Args:
        work: the run that is left.
        number: of its first entry behind the checkpoint.
        state: of the new run.

    Raises:
        InputError: the corpus of a stage that would go on is erased, or is being erased.
    """
    followed = []
    for _, data in Log(work.store, FOLDER).tail(number):
        event = decode(data).event
        if not isinstance(event, Erased) or event.corpus not in state.corpora:
            continue
        leaving = [stage for stage in state.unfinished if event.corpus in stage.corpora]
        if event.whole and leaving:
            raise InputError(
                work.where, leaving[0].name,
                f"its corpus {event.corpus} is erased: it cannot go on",
                "fork at the end of an earlier stage", code="fork-erased",
            )  # fmt: skip
        state.apply(event)
        followed.append(event)
    for info in work.store.list(TOMBSTONES):
        name = info.key.split("/")[1]
        corpus = state.corpora.get(name)
        if corpus is not None and info.key >= key_of(name, corpus.erasures):
            raise InputError(
                work.where, name, "an erasure of it was begun, and is not complete",
                "repeat `perennial erase`, which completes it", code="erasure-unfinished",
            )  # fmt: skip
    return followed


def _read_entries(store: Store, stage: Stage, step: int) -> tuple[list[bytes], RunState]:
    """Return the entries up to a checkpoint: the passing of a stage, or its start, and their state.

    A later decision about the stage, such as a rewind, is the other run's.
    """
    log, entries, state, started = Log(store, FOLDER), list[bytes](), RunState(), 0
    for _, data in log.tail(0):
        event = decode(data).event
        state.apply(event)
        entries.append(data)
        if isinstance(event, Started) and event.stage == stage.name:
            started = len(entries)
            if step < stage.last_step:
                break
        if started and is_on_trunk(state, stage) and state.has_passed(stage):
            break
    else:  # it did not pass: its end goes on there, and is judged
        entries, state = entries[:started], RunState()
        for data in entries:
            state.apply(decode(data).event)
    return entries, state


def _read_id(target: Store, event: Forked, number: int) -> str:
    """Return the id that an earlier try of the same fork gave; "" for none.

    Raises InputError where the store has anything else in it.

    Args:
        target: the new run's store.
        event: the fork.
        number: of its entry.
    """
    same = ("parent", "stage", "step")
    log = Log(target, FOLDER)
    try:
        if target.exists(log.key(0)):
            earlier = decode(log.read(number) or b"").event.model_dump()
        else:
            earlier = parse_json(target.read(MOVING))
        if all(earlier[name] == getattr(event, name) for name in same):
            return str(earlier["id"])
    except (ValueError, LookupError, TypeError):
        pass  # it is of something else
    except FileNotFoundError:
        if target.is_empty():
            return ""
    raise InputError(
        "command line", "NEW_RUN", f"its store {target.url} is not empty",
        "give the new run file a store of its own", code="place-not-empty",
    )  # fmt: skip


def _list_borrowed(store: Store, state: RunState, checkpoint: str) -> Iterator[str]:
    """Yield the keys of the folders that are large, and never change."""
    yield checkpoint
    yield from (state.ends[stage.name] for stage in state.stages if stage.name in state.ends)
    yield from (f"corpora/{corpus.name}" for corpus in state.corpora.values() if corpus.sequences)
    if state.origins:
        yield "models"


def _lend(store: Store, target: Store, name: str, folders: Sequence[str]) -> list[Loan]:
    """Pin the folders in the stores that have them; return the loans as the new store has them.

    Args:
        store: of the run that is left, which may have borrowed some itself.
        target: the new run's.
        name: id of the new run's store.
        folders: keys of what is borrowed.
    """
    of_lender: dict[str, list[str]] = {}
    lenders: dict[str, Store] = {}
    for folder in folders:
        lender = open_store(store.holder(folder).url)
        lenders[lender.url] = lender
        of_lender.setdefault(lender.url, []).append(folder)
    loans = []
    for url, its in of_lender.items():
        write_pin(lenders[url], Loan(name, place_from(lenders[url], target), tuple(its)))
        loans.append(Loan(name, place_from(target, lenders[url]), tuple(its)))
    return loans


def _copy_small(store: Store, target: Store, beginning: _Beginning) -> None:
    """Copy what is small, or is written to: tokenizers, lists, measurements, samples, skips."""
    state = beginning.state
    folders = ["tokenizer", *(f"evaluations/{end}" for end in state.ends.values())]
    folders += [f"evaluations/{origin.folder}" for origin in state.origins.values()]
    folders += [f"{TOMBSTONES}/{name}" for name, its in state.corpora.items() if its.erasures]
    infos = [info for folder in folders for info in store.list(folder)]
    named = {key for data in beginning.entries for key in _list_samples(decode(data).event)}
    infos += [info for info in store.list(SAMPLES) if info.key in named]
    for stage in state.stages:
        for info in store.list(stage.folder):
            if not info.key.removeprefix(f"{stage.folder}/").partition("/")[0].isdecimal():
                infos.append(info)
    for corpus in state.corpora.values():
        if corpus.listing is not None:
            infos.append(store.info(corpus.listing.key))
    with ThreadPoolExecutor(_WRITES_AT_ONCE) as pool:
        list(pool.map(partial(have_object, store, target, ()), infos))


def _list_samples(event: Event) -> list[str]:
    """Return the keys of the samples that an event names."""
    return [its.key for its in getattr(event, "samples", ()) if isinstance(its, SampleList)]


def _write_ledger(target: Store, beginning: _Beginning) -> None:
    """Write the entries, the first one last: with it there is a run."""
    log, entries = Log(target, FOLDER), beginning.entries
    with ThreadPoolExecutor(_WRITES_AT_ONCE) as pool:
        list(pool.map(log.append, range(1, len(entries)), entries[1:]))
    number, last = len(entries), entries[-1]
    events: list[Event] = [beginning.event, *beginning.erased]
    for event in events:
        log.append(number, encode(event, digest_of(last)))
        written = log.read(number)  # an earlier try may have written it
        assert written is not None
        number, last = number + 1, written
    target.write(HEAD, json.dumps(asdict(Head(number, digest_of(last)))).encode())
    log.append(0, entries[0])
