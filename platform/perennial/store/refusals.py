"""Refusals of a store: the server's own words, and the remedy for its code."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

from perennial.causes import is_storage_full, storage_error

Remedy = tuple[str, str]
"""a pattern of a server's code and words, and what is to be done where it is found"""


def with_remedy(error: OSError, remedies: Sequence[Remedy]) -> OSError:
    """Return the error with a note of the remedy for what the server says, where one is known.

    Args:
        error: its text is the server's code and words.
        remedies: of the service; the first whose pattern is found counts.
    """
    words = words_of(error)
    for pattern, remedy in remedies:
        if re.search(pattern, words, re.IGNORECASE):
            error.add_note(remedy)
            break
    return error


def words_of(error: OSError) -> str:
    """Return the words of the server or the system, in one line."""
    return " ".join(str(error.strerror or error).split())


def noted_remedy(error: OSError) -> str:
    """Return the remedy that `with_remedy` noted, or ""."""
    return next(iter(getattr(error, "__notes__", ())), "")


def raise_if_full(url: str, error: OSError) -> None:
    """Raise StorageFull where a store refuses because it has no room.

    Args:
        url: the store's.
        error: what an operation of it met.
    """
    if is_storage_full(error):
        full = OSError(error.errno or errno.ENOSPC, words_of(error), url)
        for note in filter(None, [noted_remedy(error)]):
            full.add_note(note)
        raise storage_error(full) from error
