"""JSON lines: a document is an object on a line of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson

from perennial.corpora.formats.base import (
    FORMATS,
    INVALID_JSON,
    INVALID_UTF8,
    MISSING_TEXT,
    TOO_LONG,
    FileFormat,
    FilePart,
    Record,
    make_record,
    read_lines,
    read_text,
)
from perennial.corpora.formats.hints import describe_bytes, describe_missing

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings


@FORMATS.register("jsonl")
class JsonLinesFormat(FileFormat):
    """`.jsonl`: the field `text_field` of a line's object; an offset is a line's first byte."""

    suffixes = (".jsonl",)
    splittable = True
    is_text = True

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the documents of the lines that begin in the part; see `FileFormat.read`."""
        for offset, line, size in read_lines(part, settings):
            if line is None:
                yield Record(offset, reason=TOO_LONG, detail=f"a line of {size} bytes")
            elif line and not line.isspace():
                yield _parse_line(offset, line, settings)

    def read_evaluation_texts(self, part: FilePart, settings: IngestSettings) -> Iterator[str]:
        """Yield the text field of every line, or all strings of a line that has none.

        Benchmarks keep a question and its answers in fields of their own.
        """
        for line in filter(None, map(str.strip, read_text(part).split("\n"))):
            value = json.loads(line)
            text = value.get(settings.text_field) if isinstance(value, dict) else None
            yield from [text] if isinstance(text, str) else _strings_in(value)


def _parse_line(offset: int, line: bytes, settings: IngestSettings) -> Record:
    try:
        try:
            value = orjson.loads(line)
        except ValueError:
            # json is slower, but takes what orjson refuses (NaN, huge numbers) and says more
            # plainly what is wrong.
            value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Record(offset, reason=INVALID_UTF8, detail=describe_bytes(line, error))
    except (ValueError, RecursionError) as error:
        return Record(offset, reason=INVALID_JSON, detail=str(error)[:200])
    if not isinstance(value, dict):
        detail = f"{type(value).__name__} instead of an object"
        return Record(offset, reason=INVALID_JSON, detail=detail)
    if settings.text_field not in value:
        detail = describe_missing(settings.text_field, value)
        return Record(offset, reason=MISSING_TEXT, detail=detail)
    domain = value.get(settings.domain_field)
    return make_record(offset, value[settings.text_field], domain, settings)


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings_in(item)
