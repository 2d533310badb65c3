"""Rules for keys: relative paths of plain parts, valid on a disk and in a bucket."""

from __future__ import annotations

import uuid

_PENDING = ".pending-"


def valid_key(key: str) -> str:
    """Return `key`, or raise ValueError when it could leave the store or differ between stores."""
    parts = key.split("/")
    if not key or "" in parts:
        raise ValueError(f"key {key!r} is empty, absolute or has an empty part")
    if "." in parts or ".." in parts:
        raise ValueError(f"key {key!r} has a part '.' or '..'")
    if "\\" in key or not key.isprintable():
        raise ValueError(f"key {key!r} has a backslash or an unprintable character")
    if "?versionId=" in key:  # s3fs would cut it off and address another object
        raise ValueError(f"key {key!r} holds '?versionId='")
    if any(is_pending(part) for part in parts):
        raise ValueError(f"key {key!r} has a part that begins with {_PENDING!r}")
    return key


def valid_prefix(prefix: str) -> str:
    """Return `prefix` without a trailing slash; "" is the whole store."""
    return valid_key(prefix.removesuffix("/")) if prefix else ""


def pending_name() -> str:
    """Return a file name for an unfinished write; no listing shows it."""
    return f"{_PENDING}{uuid.uuid4().hex}"


def is_pending(name: str) -> bool:
    """Return whether a file is an unfinished write."""
    return name.startswith(_PENDING)
