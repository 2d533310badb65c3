"""JSON lines: a document is an object on a line of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from perennial.corpora.formats.base import (
    ABSENT,
    FORMATS,
    INVALID_JSON,
    INVALID_UTF8,
    MISSING_TEXT,
    TOO_LONG,
    FileFormat,
    FilePart,
    FormatNotes,
    Record,
    find_field,
    read_lines,
    read_text,
)
from perennial.corpora.formats.hints import describe_bytes, describe_missing
from perennial.corpora.formats.token_ids import make_records

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings

_HINT = "; a JSON array, or objects over several lines, are read from a file named .json"


@FORMATS.register("jsonl")
class JsonLinesFormat(FileFormat):
    """JSON lines: the field `text_field` of a line's object; an offset is a line's first byte."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")
    splittable = True
    holds_ids = True
    is_text = True
    notes = FormatNotes(
        document="a line: the field `text_field` of its object",
        limit="a line of four times `max_document`",
        damage=(
            "`invalid-json`, `invalid-utf8`, `missing-text`, `text-not-string`, `too-long` "
            "or `empty-text` for each such line alone; a JSON array here gives "
            "`invalid-json` with the hint to name it `.json`"
        ),
    )

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the documents of the lines that begin in the part; see `FileFormat.read`."""
        for offset, line, size in read_lines(part, settings):
            if line is None:
                yield Record(offset, reason=TOO_LONG, detail=f"a line of {size} bytes")
            elif line and not line.isspace():
                yield from parse_object(offset, line, settings)

    def read_evaluation_texts(self, part: FilePart, settings: IngestSettings) -> Iterator[str]:
        """Yield the text field of every line, or all strings of a line that has none.

        Benchmarks keep a question and its answers in fields of their own.
        """
        for line in filter(None, map(str.strip, read_text(part).split("\n"))):
            yield from list_strings(json.loads(line), settings)


def parse_object(offset: int, line: bytes, settings: IngestSettings) -> Iterable[Record]:
    """Return the document in the text of a JSON object, or the reason why there is none.

    Ids may be several documents: one of them has the offset of its first id beside it.

    Args:
        offset: what identifies the record in its file.
        line: the object, which may have white space around it.
        settings: `content_field`, `domain_field` and `other_fields` name its fields.
    """
    value = _parse(offset, line)
    if isinstance(value, Record):
        return (value,)
    content = find_field(value, settings.content_field)
    if content is ABSENT:
        detail = describe_missing(settings.content_field, value)
        return (Record(offset, reason=MISSING_TEXT, detail=detail),)
    domain = find_field(value, settings.domain_field)
    others = [find_field(value, name) for name in settings.other_fields]
    return make_records(offset, content, None if domain is ABSENT else domain, settings, others)


def _parse(offset: int, line: bytes) -> dict[str, Any] | Record:
    """Return the object in a line, or the record of a line that holds none."""
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
        hint = _HINT if line.strip() in (b"[", b"{") else ""
        return Record(offset, reason=INVALID_JSON, detail=str(error)[:200] + hint)
    if not isinstance(value, dict):
        hint = _HINT if isinstance(value, list) else ""
        detail = f"{type(value).__name__} instead of an object{hint}"
        return Record(offset, reason=INVALID_JSON, detail=detail)
    return value


def list_strings(value: Any, settings: IngestSettings) -> Iterator[str]:
    """Yield an evaluation item's text field, or all strings of an item that has none.

    Args:
        value: the item, as it was read from JSON.
        settings: `text_field` names the field.
    """
    text = find_field(value, settings.text_field) if isinstance(value, dict) else None
    yield from [text] if isinstance(text, str) else _strings_in(value)


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings_in(item)
