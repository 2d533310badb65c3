"""Keep when a stage was being trained, by the ledger's times alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

TrainingTimes = list[str]
"""UTC times, ISO 8601, at which a stage's training began and ended in turn; it goes on where their
number is odd. Between a failure and its next try, and once it left the trunk, it is not trained."""


def note_training(times: TrainingTimes, at: str, *, trains: bool) -> None:
    """Add a time at which the training began or ended; none where nothing changed.

    Args:
        times: of the stage.
        at: UTC time of an event, ISO 8601.
        trains: whether the stage is being trained after the event.
    """
    if trains != bool(len(times) % 2):
        times.append(at)


def time_trained(times: Sequence[str], since: datetime, until: datetime) -> timedelta:
    """Return how long a stage was being trained in a span of time.

    Args:
        times: as `note_training` kept them.
        since, until: the span; what goes on is trained until its end.
    """
    moments = [datetime.fromisoformat(time) for time in times]
    if len(moments) % 2:
        moments.append(until)
    spans = zip(moments[::2], moments[1::2], strict=True)
    parts = (max(timedelta(0), min(end, until) - max(begin, since)) for begin, end in spans)
    return sum(parts, timedelta(0))
