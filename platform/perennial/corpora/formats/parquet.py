"""Parquet: a document is a row."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from perennial.corpora.formats.base import (
    EMPTY_FILE,
    FORMATS,
    MISSING_TEXT,
    UNREADABLE,
    FileFormat,
    FilePart,
    FormatNotes,
    Record,
)
from perennial.corpora.formats.columns import (
    count_place,
    find_column,
    list_contents,
    list_fields,
    list_values,
)
from perennial.corpora.formats.parquet_pages import find_large_page
from perennial.corpora.formats.token_ids import make_records

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings

_MAGIC = b"PAR1"
_STRINGS = {"string", "large_string", "string_view"}
_ROWS_AT_ONCE = 256
_BATCH_BYTES = 16 << 20
_PAGE_DOCUMENTS = 8
"""longest documents that a page may be as large as, since it is decoded as a whole"""
_MOST_ROWS = 1 << 40  # more than any file has


@FORMATS.register("parquet")
class ParquetFormat(FileFormat):
    """`.parquet`: the column `text_field` of a row; an offset is a row's number.

    Rows are read in batches of 16 MiB, or of one row. What is in memory besides is the page that
    holds them. Its writer may have made it as large as a row group, so that a row group with a page
    above 8 times `max_document` is not read.

    Parquet compresses its own pages. A whole Parquet file inside .gz or .zst is not taken, because
    its footer comes last: it would have to be staged before it could be read.
    """

    suffixes = (".parquet",)
    splittable = True
    compressible = False
    byte_offsets = False
    holds_ids = True
    expansion = 2
    notes = FormatNotes(
        document="a row: the column `text_field`",
        offset="the number of the row",
        limit=(
            "a batch of 16 MiB or one row, and the page that holds it, of 8 times `max_document` "
            "at most"
        ),
        damage=(
            "`unreadable` for a damaged row group, for one with a larger page, and for a file "
            "without a sound footer; "
            "`missing-text` for a file without the column, and for a null; "
            "`text-not-string` for another type"
        ),
    )

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
            _refuse_joined(file, part)
            whole = _check_file(file, part, settings)
        except Exception as error:
            whole = Record(
                0,
                reason=UNREADABLE,
                detail=_describe(error),
                lost_bytes=part.size_bytes,
                is_cut=_is_cut(part),
            )
        if whole is not None:
            yield from [whole] if part.start == 0 else []
            return
        end = part.size_bytes if part.end is None else part.end
        offset = 0
        for index in range(file.num_row_groups):
            group = file.metadata.row_group(index)
            column = group.column(0)
            # A damaged footer may place it outside the file; it belongs to some part all the same.
            place = max(0, _find_begin(column))
            if part.start <= min(place, part.size_bytes - 1) < end:
                yield from _read_row_group(file, part.stream, index, offset, settings)
            offset += _count_places(group, settings)


def _check_file(file: Any, part: FilePart, settings: IngestSettings) -> Record | None:
    """Return the record of a ParquetFile that holds no documents, by its footer."""
    footer, names = file.metadata, file.schema_arrow.names
    rows = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != footer.num_rows or footer.num_rows > _MOST_ROWS:
        raise ValueError(f"its footer contradicts itself: {footer.num_rows} rows")
    reason = detail = ""
    if find_column(file.schema_arrow, settings.content_field) is None:
        reason, detail = MISSING_TEXT, _describe_missing(file, settings)
    for name in (settings.content_field, settings.domain_field, *settings.other_fields):
        if names.count(name) > 1:
            reason = UNREADABLE
            detail = f"{names.count(name)} columns are named {name!r}; rename all but one"
    if reason:
        size, rows_lost = part.size_bytes, footer.num_rows
        return Record(0, b"", "", reason, detail[:200], size, rows_lost)
    if footer.num_rows == 0:
        return Record(0, reason=EMPTY_FILE, detail="no rows")
    return None


def _refuse_joined(file: Any, part: FilePart) -> None:
    """Raise ValueError where another Parquet file lies before the one of the footer.

    The last footer counts its places from where its own file begins, so that the rows of another
    one would be read in place of its own. Between the columns and the footer lie at most indexes;
    a file that lies before makes that gap larger by its size, and so begins within it.
    """
    part.stream.seek(-8, io.SEEK_END)
    footer = part.size_bytes - 8 - int.from_bytes(part.stream.read(4), "little")
    groups = map(file.metadata.row_group, range(file.num_row_groups))
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    gap = footer - max((_find_begin(c) + c.total_compressed_size for c in chunks), default=4)
    part.stream.seek(0)
    read, last = 4, part.stream.read(4)
    while read <= gap:
        data = last + part.stream.read(min(_BATCH_BYTES, gap + 4 - read))
        if len(data) == len(last):
            return
        if _MAGIC + _MAGIC in data:
            detail = "two Parquet files, one behind the other; land each as a file of its own"
            raise ValueError(detail)
        read, last = read + len(data) - len(last), data[-7:]


def _find_begin(column: Any) -> int:
    """Return where the pages of a column of a row group begin."""
    return int(column.dictionary_page_offset or column.data_page_offset)


def _describe_missing(file: Any, settings: IngestSettings) -> str:
    """Return which columns a ParquetFile has, and the one of strings that holds most."""
    schema, footer = file.schema_arrow, file.metadata
    leaves = {field.name: field.type for field in schema}
    for field in schema:
        inner = range(field.type.num_fields) if str(field.type).startswith("struct<") else ()
        leaves |= {f"{field.name}.{field.type[i].name}": field.type[i].type for i in inner}
    sizes = dict.fromkeys((name for name, kind in leaves.items() if str(kind) in _STRINGS), 0)
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema in sizes:
                sizes[column.path_in_schema] += column.total_uncompressed_size
    hint = f"; set corpora.text_field: {max(sizes, key=sizes.__getitem__)}" if sizes else ""
    hint = hint if settings.tokens is None else ""
    names = ", ".join(schema.names)
    return f"no column {settings.content_field!r}; its columns are {names}"[:120] + hint


def _is_cut(part: FilePart) -> bool:
    """Return whether a file that has no footer began like one that had."""
    part.stream.seek(0)
    head = part.stream.read(len(_MAGIC))
    part.stream.seek(-min(part.size_bytes, len(_MAGIC)), io.SEEK_END)
    return head == _MAGIC and part.stream.read() != _MAGIC


def _count_places(group: Any, settings: IngestSettings) -> int:
    """Return the offsets that a row group takes: its rows, or the ids in them."""
    if settings.tokens is None:
        return int(group.num_rows)
    columns = map(group.column, range(group.num_columns))
    name = f"{settings.content_field}."
    ids = (c.num_values for c in columns if f"{c.path_in_schema}.".startswith(name))
    return int(next(ids, group.num_rows))


def _read_row_group(
    file: Any, stream: BinaryIO, index: int, offset: int, settings: IngestSettings
) -> Iterator[Record]:
    """Yield the records of one row group of a ParquetFile, the first one at `offset`."""
    text_path = find_column(file.schema_arrow, settings.content_field) or ()
    domain_path = find_column(file.schema_arrow, settings.domain_field)
    others = (find_column(file.schema_arrow, name) for name in settings.other_fields)
    paths = filter(None, (text_path, domain_path, *others))
    columns = [*dict.fromkeys(map(".".join, paths))]
    row, group = 0, file.metadata.row_group(index)
    detail = ""
    try:
        detail = _describe_large_page(stream, group, columns, settings)
        batches = (
            ()
            if detail
            else file.iter_batches(
                batch_size=_choose_rows(group, columns),
                row_groups=[index],
                columns=columns,
                use_threads=False,
            )
        )
        for batch in batches:
            texts = list_contents(batch, text_path, settings)
            domains = list_values(batch, domain_path) if domain_path else [None] * len(texts)
            more = list_fields(batch, settings)
            for text, domain, fields in zip(texts, domains, more, strict=True):
                yield from make_records(offset, text, domain, settings, fields)
                row, offset = row + 1, offset + count_place(text, settings)
    except Exception as error:
        # Of any class: damaged pages become values that no conversion was made for.
        detail = _describe(error)
    rest = group.num_rows - row
    if detail or rest:
        detail = detail or f"it has {row} rows instead of {group.num_rows}"
        stored = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
        yield Record(
            offset,
            reason=UNREADABLE,
            detail=detail,
            lost_bytes=max(1, stored * max(0, rest) // max(1, group.num_rows)),
            lost_documents=max(0, rest),
        )


def _describe_large_page(
    stream: BinaryIO, group: Any, columns: list[str], settings: IngestSettings
) -> str:
    """Return what is to be done about a page that takes too much memory; "" where there is none."""
    limit = _PAGE_DOCUMENTS * settings.max_document_bytes
    for column in _choose_columns(group, columns):
        size = find_large_page(stream, column, limit)
        if size:
            return (
                f"a page of {size} bytes, above {_PAGE_DOCUMENTS} times max_document; write it "
                "with fewer rows a page, or raise max_document"
            )
    return ""


def _choose_columns(group: Any, columns: list[str]) -> Iterator[Any]:
    """Yield the metadata of the columns of a row group that are read."""
    for column in map(group.column, range(group.num_columns)):
        # A column of structs or lists is named by itself, or by the field of it that is read.
        path = f"{column.path_in_schema}."
        if any(path.startswith(f"{name}.") for name in columns):
            yield column


def _choose_rows(group: Any, columns: list[str]) -> int:
    """Return how many rows of a row group to read at once, so that they take bounded memory.

    Args:
        group: the row group's metadata.
        columns: the columns to read.
    """
    row = 1
    for column in _choose_columns(group, columns):
        row += column.total_uncompressed_size // max(1, group.num_rows)
        if column.has_dictionary_page and column.dictionary_page_offset:
            # Any row may repeat a value of the dictionary, which is in the file once.
            stored = max(0, column.data_page_offset - column.dictionary_page_offset)
            ratio = column.total_uncompressed_size / max(1, column.total_compressed_size)
            row = max(row, int(stored * ratio))
    return min(_ROWS_AT_ONCE, max(1, _BATCH_BYTES // max(1, row)))


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
