"""A store on a share that every machine mounts, wherever each of them mounts it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from perennial.errors import InputError
from perennial.store import LocalStore
from perennial.store.schemes import parse_bucket_url

_SHARE_NAMES = re.compile(r"[a-z0-9-]+")


def open_share(url: str) -> LocalStore:
    """Open the store at share://name/prefix: a folder below this machine's SHARE_MOUNT."""
    mount = os.environ.get("SHARE_MOUNT")
    if mount is None:
        problem = "this machine does not say where shares are mounted"
        raise InputError("store", url, problem, "set SHARE_MOUNT", code="share-mount-missing")
    checked = parse_bucket_url(url, _SHARE_NAMES, "credentials of the mount")
    return LocalStore(str(Path(mount, checked.removeprefix("share://"))))
