"""The root folder of a run, in a local folder or in an S3 bucket, behind one set of operations.

Both kinds behave alike (I8): writes appear whole or not at all, and `create` has one winner.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from perennial.errors import InputError
from perennial.store.append_log import Log
from perennial.store.base import ObjectInfo, Store
from perennial.store.keys import valid_key
from perennial.store.local import LocalStore
from perennial.store.s3 import S3Store

__all__ = ["Log", "ObjectInfo", "Store", "open_store"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(url: str | os.PathLike[str]) -> Store:
    """Open the store at `url`: a local folder (path or file://) or s3://bucket/prefix.

    Nothing is contacted or created: `Store.check` does that. Endpoint, region and credentials of
    S3 come from the environment or the AWS files.

    Raises:
        InputError: a url of another form.
    """
    text = os.fspath(url)
    if text.startswith("s3://"):
        return S3Store(_s3_url(text))
    local = text.removeprefix("file://")
    if "://" in local or not local or "\0" in local:
        raise InputError(
            "store",
            _without_secret(text),
            "not a store",
            "name a folder or s3://bucket/prefix",
            code="store-url-invalid",
        )
    return LocalStore(str(Path(local).expanduser().absolute()))


def _s3_url(text: str) -> str:
    bucket, _, prefix = text.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    if "@" in bucket or "?" in text:
        raise InputError(
            "store",
            _without_secret(text),
            "credentials or options in the url",
            "give s3://bucket/prefix and set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_ENDPOINT_URL",
            code="secret-in-url",
        )
    if not _BUCKET.fullmatch(bucket):
        raise InputError(
            "store",
            text,
            f"{bucket!r} is not a bucket name",
            "write s3://bucket/prefix",
            code="store-url-invalid",
        )
    if prefix:
        try:
            valid_key(prefix)
        except ValueError as error:
            raise InputError(
                "store", text, str(error), "write s3://bucket/prefix", code="store-url-invalid"
            ) from None
    return f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"


def _without_secret(text: str) -> str:
    scheme, mark, rest = text.rpartition("://")
    return f"{scheme}{mark}{rest.partition('?')[0].rpartition('@')[2]}"
