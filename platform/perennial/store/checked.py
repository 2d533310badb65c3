"""Reading of objects whose digest was promised by a manifest.

A digest that differs is fetched once more before it is an error: a proxy or a torn read can spoil
one transfer of a sound object.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from perennial.errors import Altered

if TYPE_CHECKING:
    from perennial.store.base import Store
from perennial.store.transfer_progress import count_moved

T = TypeVar("T")
_CHUNK_BYTES = 1 << 20
_READS = 2
_REMEMBERED = 1 << 16


def check_object(store: Store, key: str, sha256: str) -> None:
    """Raise Altered unless the object has this digest.

    It is read once a process: a version (by its etag) that was sound is not read again.

    Args:
        store: the store that holds it.
        key: of the object.
        sha256: the promised digest.
    """
    try:
        etag = store.info(key).etag
    except FileNotFoundError:
        raise Altered(key, sha256, "") from None
    _check_version(store, key, etag, sha256)


@lru_cache(maxsize=_REMEMBERED)
def _check_version(store: Store, key: str, etag: str, sha256: str) -> None:
    # What raises is not remembered.
    _twice(key, sha256, lambda: _compare(digest_object(store, key), sha256))


def read_checked(store: Store, key: str, sha256: str) -> bytes:
    """Return the bytes of an object. Raises Altered unless they have the promised digest."""

    def read() -> bytes:
        data = store.read(key)
        _compare(hashlib.sha256(data).hexdigest(), sha256)
        return data

    return _twice(key, sha256, read)


def download_checked(store: Store, key: str, local: Path, sha256: str) -> None:
    """Copy an object to a local file. Raises Altered unless the copy has the promised digest."""

    def read() -> None:
        store.download(key, local)
        with local.open("rb") as stream:
            _compare(_digest(stream), sha256)

    _twice(key, sha256, read)


def copy_checked(source: Store, key: str, target: Store, target_key: str, sha256: str) -> None:
    """Copy an object to another store in constant memory.

    Raises Altered, and writes nothing, unless what is copied has the promised digest.
    """

    def copy() -> None:
        digest = hashlib.sha256()
        with source.open(key) as data, target.open(target_key, "wb") as sink:
            while chunk := data.read(_CHUNK_BYTES):
                digest.update(chunk)
                sink.write(chunk)
                count_moved(len(chunk))
            _compare(digest.hexdigest(), sha256)

    _twice(key, sha256, copy)


@contextmanager
def open_checked(store: Store, key: str, sha256: str) -> Iterator[BinaryIO]:
    """Open an object for reading, once its digest was compared with the promised one.

    One in a bucket is copied to a temporary file, so that it is transferred once.

    Raises:
        Altered: it has another digest.
    """
    if store.is_local:
        check_object(store, key, sha256)
        with store.open(key) as stream:
            yield stream
        return
    with tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
        local = Path(scratch) / "file"
        download_checked(store, key, local, sha256)
        with local.open("rb") as stream:
            yield stream


def digest_object(store: Store, key: str) -> str:
    """Return the SHA-256 of an object, read in constant memory."""
    with store.open(key) as stream:
        return _digest(stream)


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


class _Differs(Exception):
    """A digest that is not the promised one; its argument is the digest."""


def _compare(actual: str, sha256: str) -> None:
    if actual != sha256:
        raise _Differs(actual)


def _twice(key: str, sha256: str, read: Callable[[], T]) -> T:
    """Return what `read` returns, at its second try if it raises _Differs. Raises Altered."""
    actual = ""
    for _ in range(_READS):
        try:
            return read()
        except FileNotFoundError:
            raise Altered(key, sha256, "") from None
        except _Differs as differs:
            actual = str(differs)
    raise Altered(key, sha256, actual)
