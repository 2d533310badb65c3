"""A store of a run that borrows folders of another run's store instead of copying them.

`borrowed.json` names the lenders, by their place as seen from this store: so a copy of both is a
copy that works, and no absolute path is in a store. The lender has a pin, `pins/<id>.json`, which
names what is borrowed of it: it is never removed while the pin is there.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self

from perennial.errors import InputError
from perennial.store.base import ObjectInfo, Objects, Store
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

BORROWED = "borrowed.json"
PINS = "pins"


@dataclass(frozen=True)
class Loan:
    """Folders that a store borrows of another one, or lends.

    id: of the store that borrows.
    place: the other store's place, as seen from the one that holds this object.
    folders: keys of the folders.
    """

    id: str
    place: str
    folders: tuple[str, ...]

    @classmethod
    def from_dict(cls, document: Any) -> Loan:
        """Return a loan as it was stored. Raises LookupError and TypeError for what is none."""
        return cls(str(document["id"]), str(document["place"]), tuple(document["folders"]))


def read_pins(store: Store) -> list[Loan]:
    """Return what a store lends to others. Raises InputError where a pin cannot be read."""
    pins = []
    for info in store.list(PINS):
        try:
            pins.append(Loan.from_dict(parse_json(store.read(info.key))))
        except (ValueError, LookupError, TypeError) as broken:
            raise _unreadable(store, info.key, broken) from None
    return pins


def write_pin(lender: Store, loan: Loan) -> None:
    """Write into a lender what is borrowed of it."""
    lender.write(pin_key(loan.id), json.dumps(asdict(loan), indent=1).encode())


def _unreadable(store: Store, key: str, broken: Exception) -> InputError:
    return InputError(
        f"{store.url}/{key}", "", f"cannot be read ({broken})", "restore it from a copy",
        code="loan-unreadable",
    )  # fmt: skip


def place_from(store: Store, other: Store) -> str:
    """Return where another store is as seen from one: a relative path where there is one."""
    if store.is_local and other.is_local:
        return os.path.relpath(Path(other.url).resolve(), Path(store.url).resolve())
    here, there = (place.url.partition("://") for place in (store, other))
    if here[0] == there[0] and here[2].partition("/")[0] == there[2].partition("/")[0]:
        return posixpath.relpath(f"/{there[2]}", f"/{here[2]}")
    return other.url


def place_at(store: Store, place: str) -> str:
    """Return the path or URL of a place as seen from a store."""
    if "://" in place:
        return place
    if store.is_local:
        return os.path.normpath(Path(store.url).resolve() / place)
    scheme, mark, path = store.url.partition("://")
    return f"{scheme}{mark}{posixpath.normpath(posixpath.join('/', path, place)).lstrip('/')}"


@dataclass(frozen=True, eq=False)
class BorrowingStore(Store):
    """A store that reads some folders from others; it changes its own objects alone.

    own: the store without what it borrows.
    lenders: the store of each borrowed folder, by its key; "" is the whole store.
    """

    own: Store = field(repr=False)
    lenders: dict[str, Store] = field(repr=False)

    def __post_init__(self) -> None:
        """Take the kind of the store that is written to."""
        object.__setattr__(self, "is_local", self.own.is_local)

    def holder(self, key: str) -> Store:
        folder = key
        while folder not in self.lenders:
            if not folder:
                return self.own
            folder = folder.rpartition("/")[0]
        return self.lenders[folder]

    def read(self, key: str) -> bytes:
        return self.holder(key).read(key)

    def write(self, key: str, data: bytes) -> None:
        self._mine(key).write(key, data)

    def create(self, key: str, data: bytes) -> bool:
        return self._mine(key).create(key, data)

    def exists(self, key: str) -> bool:
        return self.holder(key).exists(key)

    def list(self, prefix: str = "", after: str = "") -> Objects:
        folder = prefix.removesuffix("/")
        whole = self.holder(folder)
        if whole is not self.own:
            return whole.list(prefix, after)
        inside = {
            lender.url: lender
            for name, lender in self.lenders.items()
            if not folder or name.startswith(f"{folder}/")
        }
        objects = self.own.list(prefix, after)
        for lender in inside.values():
            objects += [i for i in lender.list(prefix, after) if self.holder(i.key) == lender]
        return sorted(objects, key=lambda info: info.key)

    def info(self, key: str) -> ObjectInfo:
        return self.holder(key).info(key)

    def open(self, key: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        return (self._mine(key) if mode == "wb" else self.holder(key)).open(key, mode)

    def upload(self, local: Path, key: str) -> None:
        self._mine(key).upload(local, key)

    def download(self, key: str, local: Path) -> None:
        self.holder(key).download(key, local)

    def remove(self, key_or_prefix: str) -> None:
        self.own.remove(key_or_prefix)

    def give_back(self, folder: str) -> None:
        """Read a borrowed folder from the own store from now on, which has a copy of it."""
        del self.lenders[folder]

    def arrow(self) -> tuple[FileSystem, str]:
        return self.own.arrow()

    def check(self) -> None:
        self.own.check()

    def sub(self, prefix: str) -> Self:
        folder = prefix.removesuffix("/")
        own = self.own.sub(prefix)
        inside = {
            name.removeprefix(f"{folder}/"): lender.sub(prefix)
            for name, lender in self.lenders.items()
            if name.startswith(f"{folder}/")
        }
        whole = self.holder(folder)
        if whole is not self.own:
            inside[""] = whole.sub(prefix)
        return type(self)(own.url, own, inside)

    def _mine(self, key: str) -> Store:
        """Return the own store. Raises PermissionError for a key of another one."""
        if self.holder(key) is not self.own:
            words = "belongs to the store that it is borrowed from"
            raise PermissionError(errno.EACCES, words, f"{self.url}/{key}")
        return self.own


def read_borrowed(store: Store) -> list[Loan]:
    """Return what a store borrows; nothing for most.

    Raises:
        InputError: what is written there cannot be understood.
        OSError: it cannot be reached, which never means that the store borrows nothing.
    """
    try:
        data = store.read(BORROWED)
    except FileNotFoundError:
        return []
    try:
        return [Loan.from_dict(loan) for loan in parse_json(data)["lenders"]]
    except (ValueError, LookupError, TypeError) as broken:
        raise _unreadable(store, BORROWED, broken) from None


def write_borrowed(store: Store, loans: Iterable[Loan]) -> None:
    """Write what a store borrows."""
    lenders = [asdict(loan) for loan in loans]
    store.write(BORROWED, json.dumps({"lenders": lenders}, indent=1).encode())


def pin_key(borrower: str) -> str:
    """Return the key of the pin in a lender.

    Args:
        borrower: id of the store that borrows.
    """
    return f"{PINS}/{borrower}.json"


def find_lenders(store: Store, loans: Iterable[tuple[Loan, Store]]) -> dict[str, Store]:
    """Return the lender of each borrowed folder, by its key.

    Args:
        store: the store itself.
        loans: with the store of each lender.

    Raises:
        InputError: a lender has no pin for it: it is not there, or is another store.
    """
    lenders: dict[str, Store] = {}
    for loan, lender in loans:
        if not lender.exists(pin_key(loan.id)):
            raise InputError(
                store.url, BORROWED, f"what it borrows is not in {lender.url}",
                "bring that store back, or repeat `perennial fork` with its run file",
                code="lender-missing",
            )  # fmt: skip
        lenders |= dict.fromkeys(loan.folders, lender)
    return lenders


@dataclass(frozen=True, eq=False)
class UnreadStore(BorrowingStore):
    """A store that could not be asked what it borrows: it is asked again before any request.

    find: returns its lenders, and raises what the request would.
    """

    find: Callable[[], dict[str, Store]] = field(repr=False)
    _known: list[bool] = field(default_factory=list, repr=False)

    def holder(self, key: str) -> Store:
        self._ask()
        return super().holder(key)

    def list(self, prefix: str = "", after: str = "") -> Objects:
        self._ask()
        return super().list(prefix, after)

    def remove(self, key_or_prefix: str) -> None:
        self._ask()
        super().remove(key_or_prefix)

    def sub(self, prefix: str) -> Self:
        find = partial(_find_below, self, prefix)
        return type(self)(self.own.sub(prefix).url, self.own.sub(prefix), {}, find)

    def _ask(self) -> None:
        if not self._known:
            self.lenders.update(self.find())
            self._known.append(True)


def _find_below(store: UnreadStore, folder: str) -> dict[str, Store]:
    """Return the lenders of what is in a folder of a store."""
    lenders = store.find()
    return BorrowingStore(store.url, store.own, lenders).sub(folder).lenders
