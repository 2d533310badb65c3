"""Arrow IPC, as `datasets`, pandas and polars write it: a document is a row."""

from __future__ import annotations

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
from perennial.corpora.formats.token_ids import make_records

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings

LARGEST_BATCH_BYTES = 512 << 20
_ROWS_AT_ONCE = 256
_FILE_MAGIC = b"ARROW1\0\0"
_FEATHER_1 = b"FEA1"


@FORMATS.register("arrow")
class ArrowFormat(FileFormat):
    """Arrow IPC streams and files: the column `text_field` of a row; an offset is a row's number.

    A file is read as the stream that it holds, batch after batch. A batch is in memory as a whole:
    one of more than 512 MiB is not read, nor what comes behind it.
    """

    suffixes = (".arrow", ".feather")
    holds_ids = True
    companions = ("state.json", "dataset_info.json", "dataset_dict.json", "cache-*.arrow")
    notes = FormatNotes(
        document="a row: the column `text_field`",
        offset="the number of the row",
        limit="a record batch, of 512 MiB at most; one task a file",
        damage=(
            "`unreadable` for a damaged or too large batch and what follows it, and for a "
            "stream without the mark of its end; `missing-text` for a file without the "
            "column, and for a null; Feather version 1 is not read"
        ),
    )

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the documents of a file; see `FileFormat.read`."""
        import pyarrow as pa

        # A file in the IPC file format is a stream between this magic and a footer.
        head = part.stream.peek(len(_FILE_MAGIC))
        if head.startswith(_FILE_MAGIC):
            part.stream.read(len(_FILE_MAGIC))
        source, row, offset = _Messages(part.stream), 0, 0
        try:
            if head.startswith(_FEATHER_1):
                raise pa.ArrowInvalid("Feather version 1; write it again as version 2, or Parquet")
            reader = pa.ipc.open_stream(pa.PythonFile(source, mode="r"))
            text_path = find_column(reader.schema, settings.content_field)
            domain_path = find_column(reader.schema, settings.domain_field)
            if text_path is None or reader.schema.names.count(text_path[0]) > 1:
                names = sorted(reader.schema.names)
                detail = f"no single column {settings.content_field!r} among {names}"[:200]
                yield Record(0, reason=MISSING_TEXT, detail=detail, lost_bytes=part.size_bytes)
                return
            for batch in reader:
                for start in range(0, len(batch), _ROWS_AT_ONCE):
                    rows = batch.slice(start, _ROWS_AT_ONCE)
                    texts = list_contents(rows, text_path, settings)
                    domains = list_values(rows, domain_path) if domain_path else [None] * len(texts)
                    more = list_fields(rows, settings)
                    for text, domain, fields in zip(texts, domains, more, strict=True):
                        yield from make_records(offset, text, domain, settings, fields)
                        row, offset = row + 1, offset + count_place(text, settings)
        except (pa.ArrowException, OSError, _BatchTooLarge) as error:
            if source.failure is not None:
                raise source.failure from None  # of the storage, or of the compression
            lost = part.size_bytes - part.stored_bytes(source.message_at)
            yield Record(
                offset, reason=UNREADABLE, detail=str(error)[:200], lost_bytes=max(0, lost)
            )
            return
        if source.is_cut:
            yield Record(offset, reason=UNREADABLE, detail="it ends without the mark of its end")
        elif not row:
            yield Record(0, reason=EMPTY_FILE, detail="no rows")


class _BatchTooLarge(Exception):
    """A message of a stream is longer than one may be."""


class _Messages:
    """A stream for pyarrow, which reads a message (a batch) by one call and so into memory.

    Attributes:
        message_at: the byte at which what was asked for last begins.
        failure: what reading the stream raised; pyarrow may raise another error for it.
        is_cut: whether the stream ended where another message, or the mark of the end, must be.
    """

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0
        self.message_at = 0
        self.failure: Exception | None = None
        self.is_cut = False

    def read(self, size: int) -> Any:
        """Return `size` bytes, fewer at the end. Raises _BatchTooLarge for too many."""
        if size > LARGEST_BATCH_BYTES:
            raise _BatchTooLarge(
                f"a batch of {size} bytes; write batches of {LARGEST_BATCH_BYTES >> 20} MiB at most"
            )
        self.message_at = self._position
        try:
            data = self._stream.read(size)
        except Exception as error:
            self.failure = error
            raise
        self._position += len(data)
        self.is_cut = len(data) < size
        return data

    def close(self) -> None:
        """Leave the stream to its owner."""
