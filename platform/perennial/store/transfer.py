"""Copying of a whole store; each object is compared by what the other store gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from perennial.errors import StorageError
from perennial.store.checked import digest_object

if TYPE_CHECKING:
    from perennial.store.base import ObjectInfo, Store

Copied = Callable[[str, int, int], None]
"""called with an object's key, the bytes that are the same in both stores, and all bytes"""

_CHUNK_BYTES = 1 << 20
_TRIES = 2
_OBJECTS_AT_ONCE = 8
_ROUNDS = 3


@dataclass
class StoreCopy:
    """Objects that are in two stores.

    objects, size_bytes: of all of them.
    copied: how many of them were not there before.
    """

    objects: int = 0
    size_bytes: int = 0
    copied: int = 0


def transfer(
    source: Store,
    target: Store,
    leave: Callable[[str], bool],
    done: Copied = lambda _key, _bytes, _all: None,
    seen: dict[str, str] | None = None,
) -> StoreCopy:
    """Have the objects of a store in another one as well, and no others. Safe to repeat and kill.

    Args:
        source: the store; whatever is written to it meanwhile is copied too, while it stays little.
        target: this process alone writes to it.
        leave: whether an object is left as it is, in both stores.
        done: follows the bytes.
        seen: etags in the source of what an earlier call compared, by key; those of this call are
            added.

    Raises:
        StorageError: an object changes while it is copied.
    """
    result, seen = StoreCopy(), {} if seen is None else seen
    for _ in range(_ROUNDS):
        objects = [info for info in source.list() if not leave(info.key)]
        changed = [info for info in objects if seen.get(info.key) != info.etag]
        there = {info.key: info for info in target.list() if not leave(info.key)}
        for key in there.keys() - {info.key for info in objects}:
            target.remove(key)  # of a try that was stopped, and removed in the source since
        if not changed:
            break
        result.objects, result.size_bytes = len(objects), sum(info.size_bytes for info in objects)
        same = result.size_bytes - sum(info.size_bytes for info in changed)
        with ThreadPoolExecutor(_OBJECTS_AT_ONCE) as pool:
            copies = pool.map(partial(have_object, source, target, there), changed)
            for info, copied in zip(changed, copies, strict=True):
                seen[info.key], same = info.etag, same + info.size_bytes
                result.copied += copied
                done(info.key, same, result.size_bytes)
    return result


def have_object(source: Store, target: Store, there: Collection[str], info: ObjectInfo) -> bool:
    """Have an object of a store in another one; return whether it was copied.

    Args:
        source: the store.
        target: the other one.
        there: keys of what is in the target, and compared before it is copied.
        info: the object.

    Raises:
        StorageError: it changes while it is copied.
    """
    key = info.key
    try:
        if key in there and digest_object(source, key) == digest_object(target, key):
            return False
        for _ in range(_TRIES):
            if _copy(source, key, target) == digest_object(target, key):
                return True
    except FileNotFoundError:
        if source.exists(key):
            raise
        return False  # removed since it was listed; the next listing lacks it
    raise StorageError(f"{source.url}/{key} changes while it is copied: stop what writes to it")


def _copy(source: Store, key: str, target: Store) -> str:
    """Copy an object; return the digest of what was read."""
    if target.copy_on_server(source, key, key):
        return digest_object(source, key)
    digest = hashlib.sha256()
    with source.open(key) as data, target.open(key, "wb") as sink:
        while chunk := data.read(_CHUNK_BYTES):
            digest.update(chunk)
            sink.write(chunk)
    return digest.hexdigest()
