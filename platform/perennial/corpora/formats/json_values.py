"""Files named `.json`: JSON lines, one array of objects, or objects over several lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import BufferedReader
from typing import TYPE_CHECKING

from perennial.corpora.formats.base import (
    FORMATS,
    INVALID_JSON,
    TOO_LONG,
    FilePart,
    FormatNotes,
    Record,
    longest_line,
)
from perennial.corpora.formats.jsonl import JsonLinesFormat, list_strings, parse_object

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings

_CHUNK_BYTES = 1 << 18
_BLANK = b"\xef\xbb\xbf \t\r\n"
_HEAD = re.compile(rb"(?:\xef\xbb\xbf)?\s*(\[|\{[ \t\r]*\n)")
"""The beginning of an array, or of an object that a program wrote over several lines."""
_IN_STRING = re.compile(rb'["\\]')
_BETWEEN = re.compile(rb'["\[\]{},]')
_WITHIN = re.compile(rb'["\[\]{}]')


@FORMATS.register("json")
class JsonFormat(JsonLinesFormat):
    """JSON lines, an array of objects, or objects over several lines; the field `text_field`.

    What a file is, its first line says: `[` begins an array, and an object of which it holds no
    more than `{` goes over several lines. Both are read by one task, one object after the other.
    An offset is an object's first byte.
    """

    suffixes = (".json",)
    notes = FormatNotes(
        document=(
            "a line; or, where the file begins so, an object of its array, or one over "
            "several lines: the field `text_field`"
        ),
        limit=(
            "an object or a line of four times `max_document`; an array is read as a "
            "stream, by one task"
        ),
        damage=(
            "`invalid-json`, `invalid-utf8`, `missing-text`, `text-not-string`, `too-long` "
            "or `empty-text` for each such object alone; `invalid-json` for what an array "
            "without its end breaks off in"
        ),
    )

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the documents of a part; an array belongs to the part with its first byte."""
        opening = _sniff(part)
        if not opening:
            yield from super().read(part, settings)
        elif part.start == 0:
            values = _Values(part.stream, longest_line(settings), opening == b"[")
            for offset, value, size in values:
                if value is None:
                    yield Record(offset, reason=TOO_LONG, detail=f"an object of {size} bytes")
                else:
                    yield from parse_object(offset, value, settings)
            if values.broken:
                detail = f"the file ends inside {values.broken}"
                lost = part.stored_bytes(values.left_bytes)
                yield Record(
                    values.left_at,
                    reason=INVALID_JSON,
                    detail=detail,
                    lost_bytes=lost,
                    is_cut=True,
                )

    def read_evaluation_texts(self, part: FilePart, settings: IngestSettings) -> Iterator[str]:
        """Yield the text field of every object, or all strings of an object that has none."""
        opening = _sniff(part)
        if not opening:
            yield from super().read_evaluation_texts(part, settings)
            return
        values = _Values(part.stream, longest_line(settings), opening == b"[")
        for _, value, size in values:
            if value is None:
                raise ValueError(f"an object of {size} bytes")
            yield from list_strings(json.loads(value), settings)
        if values.broken:
            raise ValueError(f"the file ends inside {values.broken}")


def _sniff(part: FilePart) -> bytes:
    """Return b"[" or b"{" where the file holds values over several lines, b"" for JSON lines."""
    if part.start:
        part.stream.seek(0)
    head = _HEAD.match(part.stream.peek(_CHUNK_BYTES))
    return head[1][:1] if head else b""


class _Values:
    """The values of an array, or values after each other, as (offset, JSON, bytes).

    JSON is None for a value that is longer than `limit`, of which no more is kept. Brackets outside
    of strings say where a value ends; what is wrong inside of one concerns it alone.

    Attributes:
        broken: what the file ends in the middle of, in words; "" for nothing, and before the end.
        left_at, left_bytes: the place and the bytes that it begins at and has.
    """

    def __init__(self, stream: BufferedReader, limit: int, is_array: bool) -> None:
        self._stream = stream
        self._limit = limit
        self._level = 1 if is_array else 0  # brackets that are open between two values
        self._kept: bytearray | None = bytearray()
        self.left_at = 0
        self.left_bytes = 0
        self.broken = ""

    def __iter__(self) -> Iterator[tuple[int, bytes | None, int]]:
        depth, in_string, skip = 0, False, 0
        while chunk := self._stream.read1(_CHUNK_BYTES):
            taken, at, skip = 0, skip, 0
            while True:
                within = _WITHIN if depth > self._level else _BETWEEN
                match = (_IN_STRING if in_string else within).search(chunk, at)
                if match is None:
                    break
                at, mark = match.end(), match[0]
                if mark == b"\\":
                    at += 1  # what follows is part of the string
                elif mark == b'"':
                    in_string = not in_string
                else:
                    before = depth
                    depth = max(0, depth + {b"[": 1, b"{": 1, b",": 0}.get(mark, -1))
                    if self._divides(mark, before, depth):
                        # The brackets of an object belong to it; those of the array do not.
                        end = at if self._level == 0 else at - 1
                        self._take(chunk[taken:end])
                        taken = at
                        yield from self._finish(at - end)
            skip = max(0, at - len(chunk))
            self._take(chunk[taken:])
        if depth or self._kept is None or self._kept.strip(b"\0"):
            self.broken = "its array" if self._level else "an object"

    def _divides(self, mark: bytes, before: int, depth: int) -> bool:
        if self._level == 0:
            return mark in b"]}" and depth <= 0
        return min(before, depth) < self._level or (mark == b"," and depth == self._level)

    def _take(self, data: bytes) -> None:
        if not self.left_bytes:  # a value begins behind the white space before it
            stripped = data.lstrip(_BLANK)
            self.left_at += len(data) - len(stripped)
            data = stripped
        self.left_bytes += len(data)
        if self._kept is not None and self.left_bytes <= self._limit:
            self._kept += data
        else:
            self._kept = None

    def _finish(self, mark_bytes: int) -> Iterator[tuple[int, bytes | None, int]]:
        """Yield the value that was taken, unless it is blank, and begin the next one."""
        if self.left_bytes:
            value = None if self._kept is None else bytes(self._kept)
            yield self.left_at, value, self.left_bytes
        self.left_at += self.left_bytes + mark_bytes
        self.left_bytes, self._kept = 0, bytearray()
