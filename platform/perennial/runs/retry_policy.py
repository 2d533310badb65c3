"""Decide whether a failed action is tried again, and when. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

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
        reason=reason(failure),
        next_try=(now + pause).isoformat(timespec="seconds") if again else None,
    )


def may_pass(failure: BaseException) -> bool:
    """Return whether neither the failure nor any of its causes is bound to come again."""
    return not any(isinstance(link, (*MISTAKES, TrainingStopped)) for link in _chain(failure))


def reason(failure: BaseException) -> str:
    """Return a failure in one line; a bug with its class, because `'x'` alone says little."""
    line = " ".join(str(failure).split())
    if not line or isinstance(failure, MISTAKES):
        line = f"{type(failure).__name__}: {line}".rstrip(": ")
    return line[:_LONGEST_REASON]


def _chain(failure: BaseException) -> Iterator[BaseException]:
    """Yield the failure and its causes, in this process or in a Ray task."""
    link: BaseException | None = failure
    while isinstance(link, BaseException):
        yield link
        link = getattr(link, "cause", None) or link.__cause__
