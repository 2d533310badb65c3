"""From the bytes of .jsonl, .txt and .parquet files to records, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from perennial.corpora.formats.documents import (
    EMPTY_FILE,
    INVALID_JSON,
    INVALID_UTF8,
    MISSING_TEXT,
    TOO_LONG,
    UNREADABLE,
    Record,
    checked,
)
from perennial.corpora.manifest import IngestSettings

# A JSON line also holds other fields, and escapes make its text longer.
_LINE_FACTOR = 4
_SKIP_BYTES = 1 << 20
_ROWS_AT_ONCE = 256
_BOM = b"\xef\xbb\xbf"


def read_jsonl(
    stream: BinaryIO, start: int, end: int | None, settings: IngestSettings
) -> Iterator[Record]:
    """The documents of the lines that begin in bytes [start, end) of a decompressed stream."""
    for offset, line, size in _lines(stream, start, end, settings):
        if line is None:
            yield Record(offset, reason=TOO_LONG, detail=f"a line of {size} bytes")
        elif line and not line.isspace():
            yield _json_record(offset, line, settings)


def read_txt(stream: BinaryIO, settings: IngestSettings) -> Iterator[Record]:
    """The documents of a .txt file: its paragraphs, or the whole of it."""
    limit = settings.max_document_bytes
    begin, size, kept = 0, 0, bytearray()

    def document() -> Record:
        if size > limit:
            return Record(begin, reason=TOO_LONG, detail=f"a document of {size} bytes")
        return checked(begin, bytes(kept).rstrip(b"\r\n"), None, limit)

    for offset, line, length in _lines(stream, 0, None, settings):
        blank = line is not None and not line.strip()
        if blank and (not size or settings.txt_documents == "paragraph"):
            if size:
                yield document()
            size, kept = 0, bytearray()
            continue
        begin = begin if size else offset
        size += length
        # What is too long is measured, not kept.
        if line is not None and size <= limit:
            kept += line
    if size:
        yield document()


def read_parquet(
    stream: BinaryIO, start: int, end: int, size_bytes: int, settings: IngestSettings
) -> Iterator[Record]:
    """The documents of the row groups that begin in bytes [start, end) of a Parquet file.

    What concerns the whole file is reported once, with the part that begins at byte 0.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole: Record | None = None
    try:
        file = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
        names = file.schema_arrow.names
        if settings.text_field not in names:
            detail = f"no column {settings.text_field!r} among {sorted(names)}"[:200]
            whole = Record(0, reason=MISSING_TEXT, detail=detail, lost_bytes=size_bytes)
        elif file.metadata.num_rows == 0:
            whole = Record(0, reason=EMPTY_FILE, detail="no rows")
    except (pa.ArrowException, OSError) as error:
        whole = Record(0, reason=UNREADABLE, detail=str(error)[:200], lost_bytes=size_bytes)
    if whole is not None:
        yield from [whole] if start == 0 else []
        return
    row = 0
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        column = group.column(0)
        if start <= (column.dictionary_page_offset or column.data_page_offset) < end:
            yield from _row_group(file, index, row, settings)
        row += group.num_rows


def _lines(
    stream: BinaryIO, start: int, end: int | None, settings: IngestSettings
) -> Iterator[tuple[int, bytes | None, int]]:
    """(offset, line, bytes) of the lines that begin in [start, end); None for too long a line."""
    limit = settings.max_document_bytes * _LINE_FACTOR
    offset = start
    if start:
        # The line that holds the byte before `start` belongs to whoever reads that byte.
        stream.seek(start - 1)
        offset += _skip_line(stream) - 1
    while end is None or offset < end:
        line = stream.readline(limit + 1)
        if not line:
            return
        size = len(line)
        if size > limit and not line.endswith(b"\n"):
            size += _skip_line(stream)
            yield offset, None, size
        else:
            yield offset, line.removeprefix(_BOM) if offset == 0 else line, size
        offset += size


def _skip_line(stream: BinaryIO) -> int:
    """Reads to the end of the line in bounded memory; returns the bytes read."""
    skipped = 0
    while line := stream.readline(_SKIP_BYTES):
        skipped += len(line)
        if line.endswith(b"\n"):
            break
    return skipped


def _json_record(offset: int, line: bytes, settings: IngestSettings) -> Record:
    try:
        try:
            value = orjson.loads(line)
        except ValueError:
            # The same, slower, for what orjson refuses: NaN, huge numbers, or to say what is wrong.
            value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Record(offset, reason=INVALID_UTF8, detail=str(error)[-200:])
    except (ValueError, RecursionError) as error:
        return Record(offset, reason=INVALID_JSON, detail=str(error)[:200])
    if not isinstance(value, dict):
        detail = f"{type(value).__name__} instead of an object"
        return Record(offset, reason=INVALID_JSON, detail=detail)
    if settings.text_field not in value:
        return Record(offset, reason=MISSING_TEXT, detail=f"no field {settings.text_field!r}")
    domain = value.get(settings.domain_field)
    return checked(offset, value[settings.text_field], domain, settings.max_document_bytes)


def _row_group(file: Any, index: int, row: int, settings: IngestSettings) -> Iterator[Record]:
    """The records of one row group of a ParquetFile, whose first row is number `row`."""
    import pyarrow as pa

    columns = [settings.text_field]
    if settings.domain_field in file.schema_arrow.names:
        columns.append(settings.domain_field)
    try:
        batches = file.iter_batches(
            batch_size=_ROWS_AT_ONCE, row_groups=[index], columns=columns, use_threads=False
        )
        for batch in batches:
            texts = _values(batch[settings.text_field])
            domains = _values(batch[columns[1]]) if columns[1:] else [None] * len(texts)
            for text, domain in zip(texts, domains, strict=True):
                yield checked(row, text, domain, settings.max_document_bytes)
                row += 1
    except (pa.ArrowException, OSError) as error:
        lost = file.metadata.row_group(index).total_byte_size
        yield Record(row, reason=UNREADABLE, detail=str(error)[:200], lost_bytes=lost)


def _values(column: Any) -> list[Any]:
    """A column's values; strings as bytes, because Parquet does not promise valid UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return list(column.to_pylist())
