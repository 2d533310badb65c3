"""What stores in buckets share, whatever service keeps the bucket."""

from __future__ import annotations

import errno
import io
import tempfile
import uuid
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Literal, NamedTuple, cast

from perennial.errors import InputError
from perennial.store.atomic_file import PendingFile
from perennial.store.base import Objects, Store, markers_first
from perennial.store.keys import pending_name, valid_key, valid_prefix
from perennial.store.refusals import noted_remedy, raise_if_full, words_of
from perennial.store.transfer_progress import count_moved

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from fsspec.callbacks import Callback

_CREATE_ATTEMPTS = 5
_REMOVALS_AT_ONCE = 8
_READ_BLOCK_BYTES = 8 << 20


class Remedies(NamedTuple):
    """Remedies for a bucket that cannot be used, in the words of its service."""

    credentials: str
    unreachable: str
    condition: str
    """The name of the condition under which the service creates an object."""


@dataclass(frozen=True)
class BucketStore(Store):
    """A store in a bucket that an fsspec filesystem reads; `url` is scheme://bucket/prefix.

    A service supplies the filesystem, its own conditional create (fsspec's generic one looks first
    and writes then, so two writers can both win) and the meaning of its errors.
    """

    is_local: ClassVar[bool] = False
    remedies: ClassVar[Remedies]

    @property
    @abstractmethod
    def filesystem(self) -> AbstractFileSystem:
        """Return the filesystem of this process; threads may share it."""

    @abstractmethod
    def errors(self, name: str) -> AbstractContextManager[None]:
        """Convert the service's errors into the OSErrors of `Store`, which name `name`.

        Their text is what the server said, and a note on them the remedy where its code has one.
        """

    @abstractmethod
    def create_marked(self, key: str, data: bytes, writer: str) -> None:
        """Put the object if the key is free, with the writer's mark in its metadata.

        The service tests the condition. Raises FileExistsError when it refused, and other
        OSErrors when it may or may not have done it.
        """

    @abstractmethod
    def writer_of(self, key: str) -> str | None:
        """Return the mark that `create_marked` left, "" without one, None without an object."""

    @abstractmethod
    def objects(self, prefix: str, limit: int | None = None, after: str = "") -> Objects:
        """Return objects below the folder `prefix` in key order, folder markers included.

        Args:
            prefix: the folder.
            limit: the first so many at most.
            after: only keys behind this one, by the service's own order of bytes.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove one object; absent is no error."""

    def read(self, key: str) -> bytes:
        with self.errors(self.name_of(key)):
            return cast(bytes, self.filesystem.cat_file(self.path_of(key)))

    def write(self, key: str, data: bytes) -> None:
        with self.errors(self.name_of(key)):
            self.filesystem.pipe_file(self.path_of(key), data)

    def create(self, key: str, data: bytes) -> bool:
        # A repeated request may find the object that its own first attempt created. The writer's
        # mark distinguishes that from a lost race, even when both wrote the same bytes.
        valid_key(key)
        writer = uuid.uuid4().hex
        for _ in range(_CREATE_ATTEMPTS):
            try:
                self.create_marked(key, data, writer)
                return True
            except PermissionError:
                raise
            except OSError as error:
                failure = error
                holder = self.writer_of(key)
            if holder is not None:
                return holder == writer
            if not isinstance(failure, FileExistsError):
                raise failure
            # Refused although the key is free: the other writer failed, or its object was removed.
        raise failure

    def exists(self, key: str) -> bool:
        try:
            self.info(key)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "", after: str = "") -> Objects:
        # Without the empty objects by which some clients mark a folder, the store's own included.
        objects = self.objects(prefix, after=after)
        return [info for info in objects if info.key.rpartition("/")[2]]

    def open(self, key: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        path = self.path_of(key)
        if mode == "wb":
            descriptor, name = tempfile.mkstemp(prefix="perennial-")
            raw = io.FileIO(descriptor, "wb")
            return PendingFile(raw, Path(name), lambda pending: self.upload(pending, key))
        with self.errors(self.name_of(key)):
            source = self.filesystem.open(
                path, "rb", block_size=_READ_BLOCK_BYTES, cache_type="readahead"
            )
            if source.details["type"] == "directory":
                raise FileNotFoundError
            return cast(BinaryIO, io.BufferedReader(source, 1 << 20))

    def upload(self, local: Path, key: str) -> None:
        path = self.path_of(key)
        if not local.is_file():  # the filesystems ignore a folder without an error
            raise FileNotFoundError(errno.ENOENT, "no such file", str(local))
        with self.errors(self.name_of(key)):
            self.filesystem.put_file(str(local), path, callback=_counted())

    def copy_on_server(self, source: Store, source_key: str, key: str) -> bool:
        # A process has one connection for a service: two of its stores are on one server.
        if type(source) is not type(self):
            return False
        origin = source.path_of(source_key)
        with self.errors(source.name_of(source_key)):
            self.filesystem.cp_file(origin, self.path_of(key))
        return True

    def download(self, key: str, local: Path) -> None:
        before = self.info(key)
        local.parent.mkdir(parents=True, exist_ok=True)
        pending = local.with_name(pending_name())
        try:
            with self.errors(self.name_of(key)):
                self.filesystem.get_file(self.path_of(key), str(pending), callback=_counted())
            # A large object is read in parts, which must all be of one version.
            if self.info(key) != before or pending.stat().st_size != before.size_bytes:
                raise OSError(f"{self.name_of(key)} changed while it was read")
            pending.replace(local)
        finally:
            pending.unlink(missing_ok=True)

    def remove(self, key_or_prefix: str) -> None:
        key = valid_key(key_or_prefix)
        keys = [key, *(info.key for info in self.objects(key))]
        keys.sort(key=markers_first)
        markers = [key for key in keys if not markers_first(key)[0]]
        with ThreadPoolExecutor(_REMOVALS_AT_ONCE) as pool:
            # One request each: servers differ on the bulk request.
            for group in (markers, keys[len(markers) :]):
                list(pool.map(self.delete, group))

    def check(self) -> None:
        try:
            self.objects("", limit=1)
        except FileNotFoundError as error:
            raise InputError(
                "store",
                self.url,
                f"bucket {self.place()[0]!r} does not exist ({words_of(error)})",
                "make the bucket or correct the url",
                code="bucket-missing",
            ) from error
        except PermissionError as error:
            raise_if_full(self.url, error)
            raise InputError(
                "store",
                self.url,
                f"the bucket may not be listed ({words_of(error)})",
                noted_remedy(error) or self.remedies.credentials,
                code="store-credentials",
            ) from error
        except OSError as error:
            raise_if_full(self.url, error)
            raise InputError(
                "store",
                self.url,
                f"cannot be reached ({words_of(error)})",
                noted_remedy(error) or self.remedies.unreachable,
                code="store-unreachable",
            ) from error
        try:
            sound = self._creates_once()
        except OSError as error:
            raise_if_full(self.url, error)
            raise InputError(
                "store",
                self.url,
                f"cannot be written ({words_of(error)})",
                noted_remedy(error)
                or "give these credentials the right to put, read and delete objects below it",
                code="store-not-writable",
            ) from error
        if not sound:
            raise InputError(
                "store",
                self.url,
                f"the server ignores {self.remedies.condition}, so two writers could both win",
                "use a server that honours conditional writes",
                code="store-without-exclusive-create",
            )

    def place(self) -> tuple[str, str]:
        """Return the bucket, and the prefix of every key with its slash, or ""."""
        bucket, _, prefix = self.url.partition("://")[2].partition("/")
        return bucket, f"{prefix}/" if prefix else ""

    def folder_of(self, prefix: str) -> str:
        """Return what names in the bucket begin with when they are below the folder `prefix`."""
        prefix = valid_prefix(prefix)
        base = self.place()[1]
        return f"{base}{prefix}/" if prefix else base

    def name_of(self, key: str) -> str:
        """Return the URL of an object, for messages."""
        return f"{self.url}/{key}"

    def path_of(self, key: str) -> str:
        """Return the path of an object in the filesystem: bucket, prefix and key."""
        return "".join((self.url.partition("://")[2], "/", valid_key(key)))


def _counted() -> Callback:
    """Return what a filesystem calls with the bytes that it moved."""
    from fsspec.callbacks import Callback

    class Counted(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            count_moved(inc)

    return Counted()
