"""New and changed files of a local folder or an S3 prefix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from perennial.errors import PullFailed
from perennial.sources.base import FetchedFile, Pull
from perennial.store import Store, open_store


def fetch_prefix(url: str, pull: Pull) -> Iterator[FetchedFile]:
    """Every file whose key or ETag is new, in the order of keys.

    Times are not asked: a large upload to S3 carries the time at which it began, and would be
    passed by for ever when a smaller one overtook it.
    """
    store = open_store(url)
    if store.is_local and not Path(store.url).is_dir():
        raise PullFailed(f"there is no folder {store.url}")
    for info in store.list(""):
        origin = f"{store.url}/{info.key}"
        if not pull.wants(info.key) or pull.seen.get(origin) == info.etag:
            continue
        local = pull.folder / "file"
        if _copied(store, info.key, info.etag, local):
            yield FetchedFile(local, info.key, origin, info.etag)
            told = f"{info.modified.isoformat()} {info.key}"
            pull.watermark = max(pull.watermark, told)


def _copied(store: Store, key: str, etag: str, local: Path) -> bool:
    """Copy the object; False when it was replaced or removed meanwhile, for the next pull."""
    try:
        store.download(key, local)
        return store.info(key).etag == etag
    except FileNotFoundError:
        return False
