"""Sources of kind `prefix`: new and changed files of a folder or an object store's prefix."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import monotonic

from perennial.errors import PullFailed, PullRefused
from perennial.sources.address import storable
from perennial.sources.base import Candidate, FetchedFile, Pull
from perennial.sources.breaker import TimeLimit
from perennial.store import ObjectInfo, Store, open_store

_PIECE_BYTES = 1 << 20


def fetch_prefix(url: str, pull: Pull) -> Iterator[FetchedFile]:
    """Yield every file whose key or ETag is new.

    Modification times are not compared: an object in S3 carries the time at which its upload began.
    A large upload that ends after a smaller, later one would be older than the watermark, and never
    be pulled.

    Args:
        url: the folder or prefix.
        pull: the pull to fill.

    Raises:
        PullFailed: when a local folder does not exist. A file that cannot be had is noted instead.
    """
    store = open_store(url)
    if store.is_local and not Path(store.url).is_dir():
        raise PullFailed(f"there is no folder {store.url}")
    candidates = []
    for info in store.list(""):
        origin = storable(f"{store.url}/{info.key}")
        if pull.wants(info.key) and pull.seen.get(pull.identify(origin)) != info.etag:
            candidates.append(
                Candidate(origin, info.etag, partial(_fetch, store, info, origin, pull))
            )
    yield from pull.fetch_each(candidates)


def _fetch(store: Store, info: ObjectInfo, origin: str, pull: Pull) -> FetchedFile | None:
    """Copy an object; return None if it was replaced or removed meanwhile.

    The next pull gets what replaced it.
    """
    local, size = pull.folder / "file", 0
    limit = TimeLimit(monotonic() + pull.seconds_for_file())
    try:
        pull.check_size(info.size_bytes)
        with local.open("wb") as sink:
            for piece in _read(store, info.key):
                size += len(piece)
                pull.spend(len(piece))
                pull.check_size(size, copied=True)
                if not limit.seconds_left:
                    raise pull.late()
                sink.write(piece)
        if store.info(info.key).etag != info.etag:
            return None
    except FileNotFoundError:
        return None
    except PullFailed as failed:
        raise type(failed)(f"{origin} {failed}") from failed.__cause__
    # For `status` alone; what was pulled before is known by `pull.seen`.
    pull.watermark = max(pull.watermark, storable(f"{info.modified.isoformat()} {info.key}"))
    return FetchedFile(local, info.key, origin, info.etag)


def _read(store: Store, key: str) -> Iterator[bytes]:
    """Yield an object in pieces. Raises PullFailed when it is there and cannot be read."""
    if store.is_local and not Path(store.url, key).is_file():
        # A pipe would be waited for.
        raise PullRefused("is no regular file")
    try:
        with store.open(key) as stream:
            while piece := stream.read(_PIECE_BYTES):
                yield piece
    except FileNotFoundError:
        raise
    except ValueError as failed:
        raise PullRefused(f"has a name that no store takes ({failed}); rename it") from failed
    except OSError as failed:
        raise PullFailed(f"cannot be read: {failed.strerror or failed}") from failed
