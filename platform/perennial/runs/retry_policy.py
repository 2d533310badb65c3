"""Decide whether a failed action is tried again, and when. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from perennial.causes import causes, describe
from perennial.config.run import StagesSpec
from perennial.errors import MISTAKES, TrainingStopped
from perennial.runs.events import Failed

_LONGEST_REASON = 500


def failed(
    corpus: str, failures_before: int, failure: BaseException, spec: StagesSpec, now: datetime
) -> Failed:
    """Build the event of a failure, with the time of the next try.

    Failures of machines, networks and stores may pass by themselves. A bug, wrong input, and a loss
    that stopped the training would only be met again: these wait for a user at once.

    Args:
        corpus: the corpus, or the release.
        failures_before: failures in a row before this one; the delay doubles with each.
        failure: what was raised.
        spec: number of attempts and first delay.
        now: the time of the failure.
    """
    attempt = failures_before + 1
    pause = timedelta(seconds=spec.retry_after_seconds * 2**failures_before)
    again = may_pass(failure) and attempt < spec.attempts
    return Failed(
        at=now.isoformat(timespec="seconds"),
        corpus=corpus,
        attempt=attempt,
        attempts=spec.attempts,
        reason=describe(failure)[:_LONGEST_REASON],
        next_try=(now + pause).isoformat(timespec="seconds") if again else None,
    )


def may_pass(failure: BaseException) -> bool:
    """Return whether neither the failure nor any of its causes is bound to come again."""
    return not any(isinstance(link, (*MISTAKES, TrainingStopped)) for link in causes(failure))
