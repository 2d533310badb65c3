"""The root folder of a run, in a local folder or in a bucket, behind one set of operations.

All kinds behave alike (I8): writes appear whole or not at all, and `create` has one winner. Each
kind is one file that registers the URL scheme it serves in `STORES`.
"""

from __future__ import annotations

import os
from functools import partial

from perennial.errors import InputError
from perennial.store.append_log import Log
from perennial.store.base import ObjectInfo, Store
from perennial.store.borrowing import (
    BorrowingStore,
    UnreadStore,
    find_lenders,
    place_at,
    read_borrowed,
)
from perennial.store.checked import (
    check_object,
    copy_checked,
    download_checked,
    open_checked,
    read_checked,
)
from perennial.store.gs import GoogleStore
from perennial.store.local import LocalStore
from perennial.store.s3 import S3Store
from perennial.store.schemes import (
    LOCAL_SCHEME,
    STORES,
    has_known_scheme,
    hide_secret,
    is_store_url,
    url_scheme,
)
from perennial.store.transfer_progress import count_moved, shown_transfer

__all__ = [
    "STORES",
    "GoogleStore",
    "LocalStore",
    "Log",
    "ObjectInfo",
    "S3Store",
    "Store",
    "check_object",
    "copy_checked",
    "count_moved",
    "download_checked",
    "is_store_url",
    "open_checked",
    "open_run_store",
    "open_store",
    "read_checked",
    "shown_transfer",
]


def open_store(url: str | os.PathLike[str]) -> Store:
    """Open the store at `url`: a local folder (a path or file://) or a URL such as s3://bucket/a.

    Nothing is contacted or created: `Store.check` does that. Endpoint, region and credentials come
    from the environment or from the configuration files of the service.

    Raises:
        InputError: a url of another form or of an unknown scheme.
    """
    text = os.fspath(url)
    scheme = url_scheme(text) or LOCAL_SCHEME
    if not has_known_scheme(scheme):
        buckets = ", ".join(f"{known}://" for known in STORES if known != LOCAL_SCHEME)
        raise InputError(
            "store",
            hide_secret(text),
            "not a store",
            f"name a folder or a url of {buckets}",
            code="store-url-invalid",
        )
    return STORES[scheme](text)


def open_run_store(url: str | os.PathLike[str]) -> Store:
    """Open the store of a run: what it borrows from another one is read there; takes a request.

    Where that fails, it is made again before the first use of the store, which then says why.

    Raises:
        InputError: as for `open_store`, or what it borrows is not where it was.
    """
    store = open_store(url)
    try:
        lenders = _find_lenders(store)
    except OSError:
        return UnreadStore(store.url, store, {}, partial(_find_lenders, store))
    return BorrowingStore(store.url, store, lenders) if lenders else store


def _find_lenders(store: Store) -> dict[str, Store]:
    loans = [(loan, open_store(place_at(store, loan.place))) for loan in read_borrowed(store)]
    return find_lenders(store, loans)
