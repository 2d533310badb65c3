"""The operations of every store."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Literal, Self, TypeAlias

from perennial.store.keys import valid_prefix

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

COMMIT_MARKERS = frozenset({"manifest.json", "_SUCCESS"})


@dataclass(frozen=True)
class ObjectInfo:
    """One object. `etag` changes when its content is replaced; `modified` is in UTC."""

    key: str
    size_bytes: int
    etag: str
    modified: datetime


Objects: TypeAlias = list[ObjectInfo]  # inside the class, `list` is the method


PROBE = "probe-"
"""beginning of the keys of objects that test whether a store can be used"""


@dataclass(frozen=True)
class Store(ABC):
    """The root folder of a run; holds nothing but its url, so it travels to any process.

    Keys are relative paths such as "ledger/000000000000.json"; a malformed one is a ValueError.
    Folders exist only through the objects below them. Failures are OSErrors: FileNotFoundError
    for an absent object, PermissionError for refused credentials, ConnectionError for a server
    that stayed unreachable through the retries.
    """

    url: str
    is_local: ClassVar[bool]

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return the object's bytes. Raises FileNotFoundError when it is absent."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Put or replace the object in one step: readers see the old bytes or the new ones."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Put the object if the key is free. Of any number of callers exactly one gets True.

        False means that another caller's object is there, even when its bytes are the same. After
        an OSError the object may or may not exist.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether there is an object (not a folder) at `key`."""

    @abstractmethod
    def list(self, prefix: str = "", after: str = "") -> Objects:
        """Return every object below the folder `prefix`, at any depth, sorted by key.

        A listing is no snapshot: of two objects that are created while it is made, it may have the
        later one alone.

        Args:
            prefix: the folder.
            after: only keys that sort behind this one; a bucket does not read the others.
        """

    @abstractmethod
    def info(self, key: str) -> ObjectInfo:
        """Return size, etag and time of an object. Raises FileNotFoundError when it is absent."""

    @abstractmethod
    def open(self, key: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        """Open for reading (seekable) or for writing.

        A written object appears complete on close; when the `with` block raises, not at all.
        Writing to a bucket goes through a temporary local file of the object's size.
        """

    @abstractmethod
    def upload(self, local: Path, key: str) -> None:
        """Put or replace the object with a local file's bytes, in one step."""

    def copy_on_server(self, source: Store, source_key: str, key: str) -> bool:
        """Put or replace the object with one of another store, on the server that holds both.

        Returns False, and does nothing, where there is no such server: read and write it then.
        """
        return False

    @abstractmethod
    def download(self, key: str, local: Path) -> None:
        """Copy the object to `local`, completely or not at all; creates the folders above it."""

    @abstractmethod
    def remove(self, key_or_prefix: str) -> None:
        """Remove the object and everything below the folder of that name; absent is no error.

        Manifests and markers are removed first, so that half a folder never looks complete (I6).
        """

    @abstractmethod
    def arrow(self) -> tuple[FileSystem, str]:
        """Return a pyarrow filesystem and this store's path in it, for readers of Parquet.

        Write through `open`: pyarrow's own local writes are visible before they are complete.
        """

    @abstractmethod
    def check(self) -> None:
        """Test that the store can be used, and leave nothing behind.

        Raises:
            InputError: it is missing, refuses the credentials, cannot be written, or lets a second
                `create` win.
        """

    def holder(self, key: str) -> Store:
        """Return the store that has an object: another one where it is borrowed."""
        return self

    def sub(self, prefix: str) -> Self:
        """Return the store whose root is the folder `prefix` of this one."""
        prefix = valid_prefix(prefix)
        return type(self)(f"{self.url.rstrip('/')}/{prefix}") if prefix else self

    def is_empty(self) -> bool:
        """Return whether nothing is there but what a test of the store left when it was killed."""
        return all(info.key.startswith(PROBE) for info in self.list())

    def _creates_once(self) -> bool:
        """Create one key twice; return True when the second attempt lost, as it must."""
        key = f"{PROBE}{uuid.uuid4().hex}"
        try:
            outcome = (self.create(key, b"first"), self.create(key, b"second"))
        except OSError:
            with suppress(OSError):
                self.remove(key)
            raise
        self.remove(key)
        return outcome == (True, False)


def markers_first(key: str) -> tuple[bool, str]:
    """Return a sort key that puts objects which commit a folder before all others."""
    return key.rpartition("/")[2] not in COMMIT_MARKERS, key
