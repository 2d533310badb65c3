"""Durations, and timetables: a period such as `6h`, or five cron fields. All times are UTC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from cronsim import CronSim, CronSimError
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_DURATION = re.compile(r"(\d{1,6})\s*([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SHORTEST = timedelta(minutes=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_duration(value: Any) -> timedelta:
    """Read `90s`, `10m`, `6h` or `7d`.

    Raises:
        ValueError: the value is not a duration.
    """
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration such as 90s, 10m, 6h or 7d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def show_duration(duration: timedelta) -> str:
    """Return a duration as the text that `parse_duration` reads, in the largest unit that fits."""
    seconds = int(duration.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


@dataclass(frozen=True)
class Timetable:
    """The times at which something is due: multiples of a period since 1970, or those of cron."""

    text: str
    period: timedelta | None

    def last_due(self, now: datetime) -> datetime:
        """Return the last due time at or before `now`."""
        if self.period is not None:
            return _EPOCH + (now - _EPOCH) // self.period * self.period
        after = now.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)
        return next(CronSim(self.text, after, reverse=True))

    def next_due(self, now: datetime) -> datetime:
        """Return the first due time after `now`."""
        if self.period is not None:
            return self.last_due(now) + self.period
        return next(CronSim(self.text, now.astimezone(UTC)))

    def __str__(self) -> str:
        return self.text


def parse_timetable(value: Any) -> Timetable:
    """Read a period such as `6h`, or cron fields such as `0 2 * * *`.

    Raises:
        ValueError: the text is neither, or its cron fields are never due.
    """
    if isinstance(value, Timetable):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is neither a period such as 6h nor five cron fields")
    text = " ".join(value.split())
    if len(text.split(" ")) != 5:
        try:
            period = parse_duration(text)
        except ValueError:
            raise ValueError(f"{text!r} is neither a period nor five cron fields") from None
        if period < _SHORTEST:
            raise ValueError(f"{text!r} is shorter than a minute")
        return Timetable(text, period)
    try:
        table = Timetable(text, None)
        table.next_due(_EPOCH)
    except (CronSimError, StopIteration) as wrong:
        raise ValueError(f"{text!r} is not a cron schedule ({wrong})") from None
    return table


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(show_duration, return_type=str),
    WithJsonSchema({"$comment": "duration", "type": "string", "pattern": f"^{_DURATION.pattern}$"}),
]
TimetableText = Annotated[
    Timetable,
    BeforeValidator(parse_timetable),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"$comment": "period or cron fields", "type": "string"}),
]
