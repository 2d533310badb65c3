"""Write down what failed: the reason in one line, and the whole text in the store."""

from __future__ import annotations

import traceback
from datetime import UTC, datetime

from perennial.causes import is_storage_full, storage_error, without_escapes
from perennial.controller.context import Workspace
from perennial.redaction import hide_secrets
from perennial.runs import retry_policy
from perennial.runs.events import Failed

FOLDER = "failures"


def describe_failure(
    work: Workspace, name: str, failures_before: int, failure: Exception
) -> Failed:
    """Return the event of a failure, whose reason names the object with the whole text.

    Args:
        work: the run.
        name: the corpus, or the release.
        failures_before: failures in a row before this one.
        failure: what was raised.

    Raises:
        StorageFull: a store or a disk had no room, which is no failed attempt of the corpus, and
            could not be written down either.
    """
    if is_storage_full(failure):
        raise storage_error(failure) from failure
    failed = retry_policy.failed(
        name, failures_before, failure, work.spec.stages, datetime.now(UTC)
    )
    reason = hide_secrets(failed.reason)
    key = f"{FOLDER}/{name}/{work.ledger.next:012d}-attempt-{failed.attempt}.txt"
    whole = "".join(traceback.format_exception(failure))
    try:
        work.store.write(key, hide_secrets(without_escapes(whole)).encode(errors="replace"))
    except OSError as refused:
        work.log(f"notice: the whole text of this failure could not be stored ({refused})")
        return failed.model_copy(update={"reason": reason})
    return failed.model_copy(update={"reason": f"{reason} (the whole text: {key})"})
