"""Sources of kind `prefix`: new and changed files of a folder or an object store's prefix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from perennial.errors import PullFailed
from perennial.sources.base import FetchedFile, Pull
from perennial.store import Store, open_store


def fetch_prefix(url: str, pull: Pull) -> Iterator[FetchedFile]:
    """Yield every file whose key or ETag is new, in the order of keys.

    Modification times are not compared: an object in S3 carries the time at which its upload began.
    A large upload that ends after a smaller, later one would be older than the watermark, and never
    be pulled.

    Args:
        url: the folder or prefix.
        pull: the pull to fill.

    Raises:
        PullFailed: when a local folder does not exist.
    """
    store = open_store(url)
    if store.is_local and not Path(store.url).is_dir():
        raise PullFailed(f"there is no folder {store.url}")
    for info in store.list(""):
        origin = f"{store.url}/{info.key}"
        if not pull.wants(info.key) or pull.seen.get(origin) == info.etag:
            continue
        local = pull.folder / "file"
        if _download(store, info.key, info.etag, local):
            yield FetchedFile(local, info.key, origin, info.etag)
            # For `status` alone; what was pulled before is known by `pull.seen`.
            pull.watermark = max(pull.watermark, f"{info.modified.isoformat()} {info.key}")


def _download(store: Store, key: str, etag: str, local: Path) -> bool:
    """Copy an object; return False if it was replaced or removed meanwhile.

    The next pull gets what replaced it.
    """
    try:
        store.download(key, local)
        return store.info(key).etag == etag
    except FileNotFoundError:
        return False
