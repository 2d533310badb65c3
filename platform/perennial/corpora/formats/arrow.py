"""Arrow IPC, as `datasets`, pandas and polars write it: a document is a row."""

from __future__ import annotations

import struct
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
_FILE_END = b"ARROW1"
_FILE_END_BYTES = 4 + len(_FILE_END)  # with the size of the footer before it
_ALIGNMENT = 64
_DICTIONARY, _BATCH = 2, 3
"""types of messages"""
_FEATHER_1 = b"FEA1"
_SKIP_BYTES = 1 << 18


@FORMATS.register("arrow")
class ArrowFormat(FileFormat):
    """Arrow IPC streams and files: the column `text_field` of a row; an offset is a row's number.

    A file is read as the stream that it holds, batch after batch. A batch is in memory as a whole:
    one of more than 512 MiB is not read, nor what comes behind it.
    """

    suffixes = (".arrow", ".feather")
    holds_ids = True
    companions = ("state.json", "dataset_info.json", "dataset_dict.json", "cache-*.arrow")
    byte_offsets = False
    notes = FormatNotes(
        document="a row: the column `text_field`",
        offset="the number of the row",
        limit="a record batch, of 512 MiB at most; one task a file",
        damage=(
            "`unreadable` for a damaged or too large batch and what follows it, and for a "
            "stream without the mark of its end or with another behind it; `missing-text` for "
            "a file without the column, and for a null; Feather version 1 is not read"
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
            detail = source.describe_rest(in_file=head.startswith(_FILE_MAGIC))
        except (pa.ArrowException, OSError, _BatchTooLarge) as error:
            if source.failure is not None:
                raise source.failure from None  # of the storage, or of the compression
            lost = part.size_bytes - part.stored_bytes(source.message_at)
            detail, is_cut = str(error)[:200], source.is_cut
            yield Record(
                offset, reason=UNREADABLE, detail=detail, lost_bytes=max(0, lost), is_cut=is_cut
            )
            return
        if source.is_cut:
            yield Record(offset, reason=UNREADABLE, detail="it ends without the mark of its end")
        elif detail:
            lost = max(1, part.size_bytes - part.stored_bytes(source.message_at))
            yield Record(offset, reason=UNREADABLE, detail=detail, lost_bytes=lost)
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
        self._before = b""
        self.message_at = 0
        self.failure: Exception | None = None
        self.is_cut = False

    def read(self, size: int) -> Any:
        """Return `size` bytes, fewer at the end. Raises _BatchTooLarge for too many."""
        _check_size(size)
        self.message_at = self._position
        try:
            data = self._stream.read(size)
        except Exception as error:
            self.failure = error
            raise
        self._position += len(data)
        self.is_cut = len(data) < size
        # Behind a number comes metadata, and behind that what it is about.
        _check_size(measure_body(self._before, data))
        self._before = data
        return data

    def describe_rest(self, *, in_file: bool) -> str:
        """Return what stands behind the end of the stream, in words; "" for nothing.

        It is read in any case: a checksum around the stream may follow.

        Args:
            in_file: whether a footer, and the magic of the file format, are to follow.
        """
        if self.is_cut:
            return ""
        begin, count, held, tail = self._position, 0, b"", b""
        while data := self.read(_SKIP_BYTES):
            if solid := data.rstrip(b"\0"):
                count = self.message_at - begin + len(solid)
                tail = (held + solid)[-_FILE_END_BYTES:]
            held = (held + data)[-_FILE_END_BYTES:]
        self.is_cut, self.message_at = False, begin
        size = int.from_bytes(tail[:4], "little") + _FILE_END_BYTES
        if not count or (in_file and tail.endswith(_FILE_END) and count <= size + _ALIGNMENT):
            return ""
        return f"{count} bytes stand behind its end; write one table a file"

    def close(self) -> None:
        """Leave the stream to its owner."""


def _check_size(size: int) -> None:
    if size > LARGEST_BATCH_BYTES:
        raise _BatchTooLarge(
            f"a batch of {size} bytes; write batches of {LARGEST_BATCH_BYTES >> 20} MiB at most"
        )


def measure_body(metadata: bytes, body: bytes) -> int:
    """Return the bytes that the buffers of a batch have once pyarrow decompresses them.

    pyarrow makes room for what a few bytes promise. 0 for a batch that is not compressed, and for
    what is no message, which pyarrow refuses.

    Args:
        metadata: of the message: a flatbuffer of Arrow's Message.fbs.
        body: of the message.
    """
    try:
        message = _follow(metadata, 0)
        kind, header = _find_field(metadata, message, 1), _find_field(metadata, message, 2)
        if not kind or not header or metadata[kind] not in (_DICTIONARY, _BATCH):
            return 0
        batch = _follow(metadata, header)
        if metadata[kind] == _DICTIONARY:
            batch = _follow(metadata, _find_field(metadata, batch, 1))
        buffers = _find_field(metadata, batch, 2)
        if not buffers or not _find_field(metadata, batch, 3):
            return 0
        vector = _follow(metadata, buffers)
        (count,) = struct.unpack_from("<I", metadata, vector)
        places = struct.iter_unpack("<qq", metadata[vector + 4 : vector + 4 + 16 * count])
        sizes = (struct.unpack_from("<q", body, at)[0] for at, size in places if size >= 8)
        return sum(size for size in sizes if size > 0)  # -1: the buffer is not compressed
    except (struct.error, IndexError):
        return 0


def _follow(data: bytes, place: int) -> int:
    """Return the place that an offset of a flatbuffer leads to."""
    return place + int(struct.unpack_from("<I", data, place)[0])


def _find_field(data: bytes, table: int, number: int) -> int:
    """Return the place of a field in a table of a flatbuffer; 0 where it is absent."""
    fields = table - int(struct.unpack_from("<i", data, table)[0])
    (size,) = struct.unpack_from("<H", data, fields)
    if 4 + 2 * number >= size:
        return 0
    (shift,) = struct.unpack_from("<H", data, fields + 4 + 2 * number)
    return table + shift if shift else 0
