"""The section `sources` of the run file: places that new data is pulled from, and times."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from perennial.config.cron import Duration, TimetableText, parse_duration
from perennial.fields import Section

_SIZE = re.compile(r"(\d+)\s*(|k|M|G|T)B")
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(value: Any) -> int:
    """Read `0`, `500 kB`, `10 MB` or `2 GB` as bytes.

    Raises:
        ValueError: the value is not a size.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value == 0:
        return 0
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a size such as 500 kB, 10 MB or 2 GB")
    return int(match[1]) * _SCALE[match[2]]


def show_size(size_bytes: int) -> str:
    """Return a size, in bytes, as the text that `parse_size` reads."""
    for unit in ("T", "G", "M", "k"):
        if size_bytes and size_bytes % _SCALE[unit] == 0:
            return f"{size_bytes // _SCALE[unit]} {unit}B"
    return f"{size_bytes} B"


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(show_size, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "$comment": "size",
            "anyOf": [{"type": "string", "pattern": f"^{_SIZE.pattern}$"}, {"const": 0}],
        }
    ),
]
SourceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]


class SourceSpec(Section):
    """A place that new data comes from: give exactly one of prefix, index and command."""

    prefix: str | None = None
    """a folder or a bucket's url; every new or changed file in it is new data"""
    index: str | None = None
    """the http(s) address of a page of links to files, or of a JSON list of files"""
    command: tuple[str, ...] | None = None
    """a program and its arguments, run without a shell; it writes files into the folder $OUT"""
    schedule: TimetableText
    """times to pull: a period such as `6h` or `1d`, or five cron fields such as `0 2 * * *`, in
    UTC"""
    match: str = "*"
    """pattern of the file names to take, such as `*.jsonl.gz`"""
    minimum: Size = 0
    """bytes that must be pulled before they land as a corpus, such as `10 MB`"""
    max_age: Duration | None = None
    """longest time that data waits for `minimum`, such as `7d`; default no limit"""
    timeout: Duration = Field(default_factory=lambda: parse_duration("1h"))
    """longest run time of a command, such as `1h`"""

    @model_validator(mode="after")
    def _one_of_three(self) -> SourceSpec:
        given = [self.prefix, self.index, self.command]
        if sum(value is not None for value in given) != 1 or self.command == ():
            raise ValueError("a source has exactly one of prefix, index and command; give one")
        return self

    @model_validator(mode="after")
    def _plain_address(self) -> SourceSpec:
        if self.index is None:
            return self
        parts = urlsplit(self.index)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"index {parts.path!r} is no http address; write https://host/path/")
        if "@" in parts.netloc:
            # The run file is kept in the ledger and in MLflow.
            raise ValueError(
                "index holds a user or password; "
                f"write it without them and put them into ~/.netrc for {parts.hostname}"
            )
        return self
