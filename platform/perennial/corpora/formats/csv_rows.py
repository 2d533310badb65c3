"""Tables in text: comma- or tab-separated rows below a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import TYPE_CHECKING

from perennial.corpora.formats.base import (
    EMPTY_FILE,
    FORMATS,
    INVALID_ROW,
    MISSING_TEXT,
    TOO_LONG,
    FileFormat,
    FilePart,
    FormatNotes,
    Record,
    longest_line,
    make_record,
    read_lines,
)

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings

_DELIMITERS = ",\t;|"


@FORMATS.register("csv")
class CsvFormat(FileFormat):
    """The column `text_field` of a row; the first row names the columns.

    The delimiter is the one of comma, tab, semicolon and bar under which the header has that
    column. Quotes are as in RFC 4180: a field in quotes may hold newlines, delimiters and doubled
    quotes. A row whose quotes or number of fields are wrong is set aside, since its text may be cut
    off. An offset is a row's first byte. A file is not split: whether a newline ends a row depends
    on the quotes before it.
    """

    suffixes = (".csv", ".tsv")
    is_text = True
    notes = FormatNotes(
        document="a row below the header: the column `text_field`",
        limit="a row of four times `max_document`; one task a file",
        damage=(
            "`invalid-row` for a row whose quotes are not doubled or that has another "
            "number of fields than the header, `invalid-utf8`, `too-long` or `empty-text` "
            "for that row alone; `missing-text` for a file without the column, or with two "
            "of its name"
        ),
    )

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the documents of a file; see `FileFormat.read`."""
        limit = longest_line(settings)
        csv.field_size_limit(max(limit, csv.field_size_limit()))  # of the process; ours is below
        lines = _RowLines(part, settings)
        try:
            first = next(lines)
        except (StopIteration, _RowTooLong):
            first = ""
        delimiter, names = _read_header(first, settings.text_field)
        if names.count(settings.text_field) != 1:
            detail = f"no single column {settings.text_field!r} among {names}"[:200]
            if "\r" in first.rstrip():
                detail = r"its lines end with CR alone; convert with tr '\r' '\n' < FILE > NEW"
            yield Record(0, reason=MISSING_TEXT, detail=detail, lost_bytes=part.size_bytes)
            return
        text = names.index(settings.text_field)
        domain = names.index(settings.domain_field) if settings.domain_field in names else None
        places = [names.index(f) if f in names else None for f in settings.other_fields]
        reader, rows = csv.reader(lines, delimiter=delimiter, strict=True), 0
        while True:
            lines.begin_row()
            try:
                row = next(reader)
            except StopIteration:
                break
            except _RowTooLong:
                detail, lost = f"a row of {lines.row_bytes} bytes", lines.lost_bytes
                yield Record(lines.begin, reason=TOO_LONG, detail=detail, lost_bytes=lost)
            except csv.Error as error:
                detail, lost = f"{error}; double the quotes in a quoted field", lines.lost_bytes
                yield Record(lines.begin, reason=INVALID_ROW, detail=detail, lost_bytes=lost)
            else:
                if row and len(row) != len(names):
                    detail = f"{len(row)} fields instead of {len(names)}; quote those with "
                    detail += f"{delimiter!r} in them"
                    yield Record(lines.begin, reason=INVALID_ROW, detail=detail)
                elif row:
                    name = None if domain is None else _bytes(row[domain])
                    fields = [None if place is None else _bytes(row[place]) for place in places]
                    yield make_record(lines.begin, _bytes(row[text]), name, settings, fields)
            rows += 1
        if not rows:
            yield Record(0, reason=EMPTY_FILE, detail="no rows")


def _read_header(line: str, text_field: str) -> tuple[str, list[str]]:
    """Return the delimiter, and the names of the columns; those of a comma where none fits."""
    headers = {}
    for delimiter in _DELIMITERS:
        try:
            fields = next(csv.reader([line], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        headers[delimiter] = [field.strip() for field in fields]
        if text_field in headers[delimiter]:
            return delimiter, headers[delimiter]
    return ",", headers.get(",", [])


def _bytes(field: str) -> bytes:
    # Bytes that are not UTF-8 went through csv as surrogates; `make_record` refuses them.
    return field.encode("utf-8", "surrogateescape")


class _RowTooLong(Exception):
    """A row has more bytes than a row may have."""


class _RowLines(Iterator[str]):
    """The lines of a file for csv, with the place and the bytes of the row that they belong to."""

    def __init__(self, part: FilePart, settings: IngestSettings) -> None:
        self._part = part
        self._limit = longest_line(settings)
        self._lines = read_lines(part, settings)
        self.begin_row()

    def begin_row(self) -> None:
        """Count from 0 again: the next line is the first one of a row."""
        self.begin = self.row_bytes = self._row_lines = 0

    @property
    def lost_bytes(self) -> int:
        """Return the stored bytes of a bad row that may have taken more rows with it."""
        return self._part.stored_bytes(self.row_bytes) if self._row_lines > 1 else 0

    def __next__(self) -> str:
        offset, line, size = next(self._lines)
        if not self._row_lines:
            self.begin = offset
        self._row_lines += 1
        self.row_bytes += size
        if line is None or self.row_bytes > self._limit:
            raise _RowTooLong
        return line.decode("utf-8", "surrogateescape")
