"""Parquet: a document is a row."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from perennial.corpora.formats.base import (
    EMPTY_FILE,
    FORMATS,
    MISSING_TEXT,
    UNREADABLE,
    FileFormat,
    FilePart,
    Record,
    make_record,
)

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings

_MAGIC = b"PAR1"
_ROWS_AT_ONCE = 256


@FORMATS.register("parquet")
class ParquetFormat(FileFormat):
    """`.parquet`: the column `text_field` of a row; an offset is a row's number.

    Parquet compresses its own pages. A whole Parquet file inside .gz or .zst is not taken, because
    its footer comes last: it would have to be staged before it could be read.
    """

    suffixes = (".parquet",)
    splittable = True
    compressible = False
    expansion = 2

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the documents of the row groups that begin in the part; see `FileFormat.read`.

        What concerns the whole file is reported once, with the part that begins at byte 0.
        """
        # Imported here: the command line looks up suffixes and must start without pyarrow.
        import pyarrow as pa
        import pyarrow.parquet as pq

        whole: Record | None = None
        try:
            file = pq.ParquetFile(pa.PythonFile(part.stream, mode="r"))
            names = file.schema_arrow.names
            if settings.text_field not in names:
                detail = f"no column {settings.text_field!r} among {sorted(names)}"[:200]
                whole = Record(
                    0,
                    reason=MISSING_TEXT,
                    detail=detail,
                    lost_bytes=part.size_bytes,
                    lost_documents=file.metadata.num_rows,
                )
            elif file.metadata.num_rows == 0:
                whole = Record(0, reason=EMPTY_FILE, detail="no rows")
        except (pa.ArrowException, OSError) as error:
            whole = Record(
                0,
                reason=UNREADABLE,
                detail=str(error)[:200],
                lost_bytes=part.size_bytes,
                is_cut=_is_cut(part),
            )
        if whole is not None:
            yield from [whole] if part.start == 0 else []
            return
        end = part.size_bytes if part.end is None else part.end
        row = 0
        for index in range(file.num_row_groups):
            group = file.metadata.row_group(index)
            column = group.column(0)
            if part.start <= (column.dictionary_page_offset or column.data_page_offset) < end:
                yield from _read_row_group(file, index, row, settings)
            row += group.num_rows


def _is_cut(part: FilePart) -> bool:
    """Return whether a file that has no footer began like one that had."""
    part.stream.seek(0)
    head = part.stream.read(len(_MAGIC))
    part.stream.seek(-min(part.size_bytes, len(_MAGIC)), io.SEEK_END)
    return head == _MAGIC and part.stream.read() != _MAGIC


def _read_row_group(file: Any, index: int, row: int, settings: IngestSettings) -> Iterator[Record]:
    """Yield the records of one row group of a ParquetFile, whose first row is number `row`."""
    import pyarrow as pa

    columns = [settings.text_field]
    if settings.domain_field in file.schema_arrow.names:
        columns.append(settings.domain_field)
    begin = row
    try:
        batches = file.iter_batches(
            batch_size=_ROWS_AT_ONCE, row_groups=[index], columns=columns, use_threads=False
        )
        for batch in batches:
            texts = _values(batch[settings.text_field])
            domains = _values(batch[columns[1]]) if columns[1:] else [None] * len(texts)
            for text, domain in zip(texts, domains, strict=True):
                yield make_record(row, text, domain, settings)
                row += 1
    except (pa.ArrowException, OSError) as error:
        group = file.metadata.row_group(index)
        stored = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
        rest = begin + group.num_rows - row
        yield Record(
            row,
            reason=UNREADABLE,
            detail=str(error)[:200],
            lost_bytes=max(1, stored * rest // max(1, group.num_rows)),
            lost_documents=rest,
        )


def _values(column: Any) -> list[Any]:
    """Return a column's values; strings as bytes, because Parquet does not promise valid UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return list(column.to_pylist())
