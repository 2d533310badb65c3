"""A store in a local folder (or on a shared file system with hard links)."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Literal

from perennial.causes import remedy_of
from perennial.errors import InputError
from perennial.store.atomic_file import PendingFile
from perennial.store.base import ObjectInfo, Objects, Store, markers_first
from perennial.store.keys import is_pending, pending_name, valid_key, valid_prefix
from perennial.store.refusals import raise_if_full, words_of
from perennial.store.schemes import LOCAL_SCHEME, STORES, hide_secret
from perennial.store.transfer_progress import count_moved

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class LocalStore(Store):
    """A store in a folder; `url` is its absolute path. The first write creates it."""

    is_local: ClassVar[bool] = True

    def read(self, key: str) -> bytes:
        with self.open(key) as source:
            return source.read()

    def write(self, key: str, data: bytes) -> None:
        with self.open(key, "wb") as sink:
            sink.write(data)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        won = False

        def link(pending: Path) -> None:
            nonlocal won
            try:
                os.link(pending, path)
                won = True
            except FileExistsError:
                # NFS may repeat a request that had succeeded: then our file has two names.
                won = pending.stat().st_nlink == 2
            _sync_folder(path.parent)

        with _pending(path.parent, link) as sink:
            sink.write(data)
        return won

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str = "", after: str = "") -> Objects:
        objects = []
        root = str(Path(self.url))
        for parent, folders, names in os.walk(Path(root, valid_prefix(prefix))):
            folder = parent.removeprefix(root).strip(os.sep).replace(os.sep, "/")
            start = f"{folder}/" if folder else ""
            # By text, and only then a path: most keys of a long log are not behind `after`.
            folders[:] = [name for name in folders if f"{start}{name}/{_LAST}" > after]
            for name in names:
                if start + name > after and not is_pending(name):
                    with suppress(FileNotFoundError):  # removed since the folder was read
                        objects.append(_info(start + name, Path(parent, name)))
        return sorted(objects, key=lambda info: info.key)

    def info(self, key: str) -> ObjectInfo:
        path = self._path(key)
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such object", str(path))
        return _info(key, path)

    def open(self, key: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        path = self._path(key)
        if mode == "wb":
            return _pending(path.parent, lambda pending: _replace(pending, path))
        try:
            return path.open("rb")
        except (IsADirectoryError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, "no such object", str(path)) from None

    def upload(self, local: Path, key: str) -> None:
        if not local.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(local))
        with local.open("rb") as source, self.open(key, "wb") as sink:
            _copy(source, sink)

    def download(self, key: str, local: Path) -> None:
        with (
            self.open(key) as source,
            _pending(local.parent, lambda pending: pending.replace(local)) as sink,
        ):
            _copy(source, sink)

    def remove(self, key_or_prefix: str) -> None:
        path = self._path(key_or_prefix)
        for file in sorted(map(str, _files(path)), key=markers_first):
            Path(file).unlink(missing_ok=True)
        if path.is_dir():
            shutil.rmtree(path, onerror=_ignore_absent)
        else:
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()

    def arrow(self) -> tuple[FileSystem, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), self.url

    def check(self) -> None:
        # The first write creates a missing folder in its nearest existing parent: test that one.
        root = Path(self.url)
        root = next(folder for folder in (root, *root.parents) if folder.exists())
        try:
            if not root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{root} is not a folder")
            sound = LocalStore(str(root))._creates_once()
        except OSError as error:
            raise_if_full(self.url, error)
            known = "" if error.errno in (errno.EACCES, errno.EPERM) else remedy_of(error)
            raise InputError(
                "store",
                self.url,
                f"cannot be written ({words_of(error)})",
                known
                or "name a folder that this user may create and write, on a file system with "
                "hard links",
                code="store-not-writable",
            ) from error
        if not sound:
            raise InputError(
                "store",
                self.url,
                "the file system lets two writers create one file",
                "name a folder on a file system with exclusive hard links",
                code="store-without-exclusive-create",
            )

    def _path(self, key: str) -> Path:
        return Path(self.url, valid_key(key))


_LAST = chr(0x10FFFF)
"""no key has a character behind it"""


@STORES.register(LOCAL_SCHEME)
def open_local_store(url: str) -> LocalStore:
    """Open the folder at a path or a file:// URL; a relative path becomes absolute."""
    local = url.removeprefix(f"{LOCAL_SCHEME}://")
    if "://" in local or not local or "\0" in local:
        raise InputError(
            "store", hide_secret(url), "not a folder", "name a folder", code="store-url-invalid"
        )
    try:
        folder = Path(local).expanduser()
    except RuntimeError:  # what Python makes of a user whom the machine does not know
        raise InputError(
            "store", local, f"this machine has no user {local.partition('/')[0][1:]}",
            "write the whole path", code="store-url-invalid",
        ) from None  # fmt: skip
    return LocalStore(str(folder.absolute()))


def _files(folder: Path) -> Iterator[Path]:
    """Yield every file below `folder` that is not an unfinished write."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if not is_pending(name))


def _info(key: str, path: Path) -> ObjectInfo:
    status = path.stat()
    # A replaced file has another inode, so the etag changes even within one clock tick.
    etag = f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"
    modified = datetime.fromtimestamp(status.st_mtime, UTC)
    return ObjectInfo(key=key, size_bytes=status.st_size, etag=etag, modified=modified)


def _pending(folder: Path, publish: Callable[[Path], object]) -> PendingFile:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / pending_name()
    return PendingFile(io.FileIO(path, "xb"), path, publish)


def _replace(pending: Path, path: Path) -> None:
    pending.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a new name in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ignore_absent(
    _call: object, _path: str, failure: tuple[object, BaseException, object]
) -> None:
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]


def _copy(source: BinaryIO, sink: BinaryIO) -> None:
    while chunk := source.read(_CHUNK_BYTES):
        sink.write(chunk)
        count_moved(len(chunk))
