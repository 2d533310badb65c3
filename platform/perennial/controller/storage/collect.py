"""Free space in a store: let go of what a user's policy names and nothing needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

from perennial.errors import InputError
from perennial.runs import lease
from perennial.runs.ledger import now
from perennial.runs.storage.space import DEFAULT_KINDS, KINDS, Kind, list_free, sum_below
from perennial.runs.storage.store_events import LetGo
from perennial.store import Store, open_store
from perennial.store.borrowing import read_pins

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.runs.state import RunState


@dataclass(frozen=True)
class FreedFolder:
    """A folder that is let go.

    kind: of what it is. folder: its key. size_bytes: of what is in it.
    """

    kind: Kind
    folder: str
    size_bytes: int


@dataclass(frozen=True)
class Freed:
    """Folders that were let go of a store, or would be.

    Attributes:
        folders: each with its kind and bytes.
        size_bytes: of all of them.
        pinned: folders that another run borrows, and that stay.
    """

    folders: tuple[FreedFolder, ...]
    size_bytes: int
    pinned: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return asdict(self)


def collect(work: Workspace, kinds: Sequence[str] = ()) -> Freed:
    """Let go of what nothing needs, of some kinds. Safe to repeat and to kill.

    An event names the folders first, so that what is missing is never taken for what was lost.

    Args:
        work: the run.
        kinds: of what is let go; none: the default ones.

    Raises:
        Busy: another process trains, tokenises or holds the whole store, and lives.
        InputError: there is no run, or no such kind.
    """
    chosen = check_kinds(kinds)
    store = open_store(work.store.url)  # never what is borrowed
    _read_state(work)  # before anything is written
    with lease.hold_alone(store, "gc", now()):
        freed = _plan(work, store, chosen)
        state = work.ledger.state
        new = [its for its in freed.folders if not state.store.is_absent(its.folder)]
        if new:
            event = LetGo(
                at=now(),
                folders=tuple(its.folder for its in new),
                size_bytes=sum(its.size_bytes for its in new),
            )
            work.ledger.transact(lambda _: event)
        for its in freed.folders:
            store.remove(its.folder)
    return freed


def plan_collect(work: Workspace, kinds: Sequence[str] = ()) -> Freed:
    """Return what `collect` would do; arguments and errors are its, and it reads only."""
    return _plan(work, open_store(work.store.url), check_kinds(kinds))


def check_kinds(kinds: Sequence[str]) -> tuple[Kind, ...]:
    """Return the kinds of what is let go. Raises InputError for one that is none."""
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(
                "command line", "--kind", f"{kind!r} is no kind of what can be let go",
                f"give {', '.join(get_args(Kind))}", code="kind-unknown",
            )  # fmt: skip
    return tuple(kind for kind in KINDS if kind in (kinds or DEFAULT_KINDS))


def _read_state(work: Workspace) -> RunState:
    """Return the state of the run. Raises InputError where there is none."""
    state = work.ledger.read()
    if state.spec is None:
        raise InputError(
            work.where, "", f"there is no run in {work.store.url}",
            "free the space of what was begun with `perennial run`", code="no-run-in-store",
        )  # fmt: skip
    return state


def _plan(work: Workspace, store: Store, kinds: Sequence[Kind]) -> Freed:
    state = _read_state(work)
    pinned = {folder for pin in read_pins(store) for folder in pin.folders}
    objects = store.list()
    keys = [info.key for info in objects]
    kind_of = {f: kind for kind in kinds for f in list_free(state, kind, keys, pinned)}
    sizes = sum_below(objects, kind_of)
    folders = tuple(FreedFolder(kind_of[f], f, sizes[f]) for f in sorted(kind_of))
    size = sum(folder.size_bytes for folder in folders)
    return Freed(folders, size, tuple(sorted(pinned)))
