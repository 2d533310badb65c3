"""Failures on their way from a task to the driver, as what they are.

Ray Data wraps what a task raises into an exception of its own, of which only the printed traceback
arrives: a refusal and a full disk would look like a lost connection.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from itertools import pairwise

from perennial.causes import causes

TRIED_AGAIN = "AWS Error"
"""what the message of a failure holds that Ray is to try again inside the task"""


class _Printed(Exception):
    """The traceback of a failure in the process that raised it; the last of its causes."""


def carried(work: Callable[[], str]) -> tuple[bytes, str]:
    """Return what a task failed with, or b"", and its result, or "".

    Raises:
        Exception: a failure that Ray tries again.
    """
    try:
        return b"", work()
    except Exception as failure:
        if TRIED_AGAIN in str(failure):
            raise
        return _pack(failure), ""


def raise_carried(failure: bytes) -> None:
    """Raise what a task failed with, with its causes and its traceback; b"" is no failure."""
    if not failure:
        return
    links: list[BaseException] = pickle.loads(failure)
    for link, cause in pairwise(links):
        link.__cause__ = cause
    raise links[0]


def _pack(failure: Exception) -> bytes:
    printed = "".join(traceback.format_exception(failure))
    links = [*causes(failure), _Printed(printed)]
    try:
        packed = pickle.dumps(links)
        pickle.loads(packed)  # an exception may be written and not be read again
    except Exception:
        line = "".join(traceback.format_exception_only(failure))
        packed = pickle.dumps([RuntimeError(line), _Printed(printed)])
    return packed
