"""Lines of the log on stderr: with time and level, as text or as JSON, where that is asked for."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

_LEVELS = ("notice", "warning")
"""levels that a line may begin with; any other is of level info"""


class LogFormat(StrEnum):
    """Form of the log."""

    SCREEN = "screen"
    TEXT = "text"
    JSON = "json"


LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        envvar="PERENNIAL_LOG_FORMAT",
        metavar="FORMAT",
        help="The log on stderr: screen, or text or json for lines with time and level",
    ),
]


class _Chosen:
    """The format of this process's log."""

    format = LogFormat.SCREEN


def for_screen() -> bool:
    """Return whether the log is for a user at a screen, without times and levels."""
    return _Chosen.format is LogFormat.SCREEN


def split_level(text: str) -> tuple[str, str]:
    """Return level and text of a line of a run's log."""
    level, colon, rest = text.partition(": ")
    return (level, rest) if colon and level in _LEVELS else ("info", text)


def format_line(form: LogFormat, at: str, level: str, text: str, fields: dict[str, Any]) -> str:
    """Return a line of the log.

    Args:
        form: text or json.
        at: UTC time, ISO 8601.
        level: info, notice, warning or error.
        text: the message, which becomes one line.
        fields: more about it, for programs; not shown in text.
    """
    message = " ".join(text.split())
    if form is LogFormat.JSON:
        document = {"at": at, "level": level, "message": message} | _plain(fields)
        return json.dumps(document, default=str)
    return f"{at} {level:7} {message}"


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields with null for a number that is not finite, which JSON does not have."""
    return {
        name: _plain(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in fields.items()
    }


def write_line(text: str, level: str = "", **fields: Any) -> None:
    """Write a line with time and level to stderr, at once.

    Args:
        text: the message; it begins with its level where none is given and it is not info.
        level: of the message.
        fields: more about it, for programs.
    """
    chosen, message = (level, text) if level else split_level(text)
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(format_line(_Chosen.format, at, chosen, message, fields), file=sys.stderr, flush=True)


class _Handler(logging.Handler):
    """Writes what libraries log in the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += f" ({_describe(record.exc_info[1])})"
            write_line(text, level, logger=record.name)
        except Exception:
            self.handleError(record)  # as every handler: who logs is not ended by it


def _describe(error: BaseException) -> str:
    """Return kind and words of an error, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def using_format(form: LogFormat) -> Iterator[None]:
    """Write the log in a form while the block runs."""
    if form is LogFormat.SCREEN:
        yield
        return
    handler, root, before = _Handler(logging.WARNING), logging.getLogger(), _Chosen.format
    root.addHandler(handler)
    _Chosen.format = form
    try:
        yield
    finally:
        _Chosen.format = before
        root.removeHandler(handler)
