"""Whether a failure is worth another try, and when. Pure."""

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
    """What is written down of a failure: when it is tried again, if it is.

    What a machine, a network or a store did may pass by itself. A mistake, of the program or in
    what it was given, and a loss that stopped the training would only be met again: these wait for
    a person at once.
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
    """Whether neither the failure nor anything that caused it is bound to come again."""
    return not any(isinstance(each, (*MISTAKES, TrainingStopped)) for each in _chain(failure))


def reason(failure: BaseException) -> str:
    """It in one line; a mistake with its kind, because its text alone may say little."""
    told = " ".join(str(failure).split())
    if not told or isinstance(failure, MISTAKES):
        told = f"{type(failure).__name__}: {told}".rstrip(": ")
    return told[:_LONGEST_REASON]


def _chain(failure: BaseException) -> Iterator[BaseException]:
    """The failure and what caused it, in this process or in a task of Ray's."""
    link: BaseException | None = failure
    while isinstance(link, BaseException):
        yield link
        link = getattr(link, "cause", None) or link.__cause__
