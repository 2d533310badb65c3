"""The kinds of stores by URL scheme, and the form that the URLs of buckets share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from perennial.errors import InputError
from perennial.registry import Registry
from perennial.store.base import Store
from perennial.store.keys import valid_key

StoreOpener: TypeAlias = Callable[[str], Store]
"""Return the store at a URL, scheme included, without contacting it. Raises InputError for a URL
of another form. A `Store` subclass that takes any URL of its scheme is an opener too."""

STORES: Registry[StoreOpener] = Registry("store", "perennial.stores")

LOCAL_SCHEME = "file"


def url_scheme(text: str) -> str:
    """Return the scheme of a URL such as "s3", or "" for a path."""
    scheme, mark, _ = text.partition("://")
    return scheme if mark else ""


def has_known_scheme(scheme: str) -> bool:
    """Return whether a store of this scheme exists; loads the plug-ins before it says no."""
    if scheme not in STORES:
        # A process that reads no run file, such as `perennial status URL`, has not loaded them.
        STORES.load_plugins()
    return scheme in STORES


def is_store_url(text: str) -> bool:
    """Return whether a text is a URL of a known scheme, rather than a local path."""
    scheme = url_scheme(text)
    return bool(scheme) and has_known_scheme(scheme)


def parse_bucket_url(text: str, bucket_names: re.Pattern[str], credentials: str) -> str:
    """Check a URL scheme://bucket/prefix and return it without a slash at its end.

    Args:
        text: the URL.
        bucket_names: matches a whole name of a bucket.
        credentials: the advice for a URL that holds a secret: how to give it instead.

    Raises:
        InputError: the URL has another form, or holds credentials or options.
    """
    scheme, _, rest = text.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    form = f"write {scheme}://bucket/prefix"
    if "@" in bucket or "?" in text:
        raise InputError(
            "store",
            hide_secret(text),
            "credentials or options in the url",
            f"give {scheme}://bucket/prefix and {credentials}",
            code="secret-in-url",
        )
    if not bucket_names.fullmatch(bucket):
        problem = f"{bucket!r} is not a bucket name"
        raise InputError("store", text, problem, form, code="store-url-invalid")
    if prefix:
        try:
            valid_key(prefix)
        except ValueError as error:
            raise InputError("store", text, str(error), form, code="store-url-invalid") from None
    return f"{scheme}://{bucket}/{prefix}" if prefix else f"{scheme}://{bucket}"


def hide_secret(text: str) -> str:
    """Return a URL without what may be a password: user information and query."""
    scheme, mark, rest = text.rpartition("://")
    return f"{scheme}{mark}{rest.partition('?')[0].rpartition('@')[2]}"
