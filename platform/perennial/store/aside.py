"""Objects that are replaced: what was there is kept below `aside/`.

It lies under its own key and the beginning of its digest, so that nothing is lost by a repair.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.store.checked import digest_object

if TYPE_CHECKING:
    from perennial.store.base import Store

ASIDE = "aside"


def set_aside(store: Store, key: str, sha256: str) -> None:
    """Keep an object's bytes in another place, and free its key.

    Args:
        store: the store that holds it.
        key: of the object.
        sha256: its digest.
    """
    _keep(store, key, sha256)
    store.remove(key)


def replace_object(store: Store, key: str, local: Path) -> None:
    """Store a local file as an object, in place of what may be there; there always is one of them.

    Args:
        store: the store.
        key: of the object.
        local: the file.
    """
    if store.exists(key):
        _keep(store, key, digest_object(store, key))
    store.upload(local, key)


def _keep(store: Store, key: str, sha256: str) -> None:
    with tempfile.TemporaryDirectory(prefix="perennial-repair-") as folder:
        local = Path(folder, "object")
        store.download(key, local)
        store.upload(local, f"{ASIDE}/{key}-{sha256[:12]}")
