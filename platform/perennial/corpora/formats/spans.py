"""Reading a part of a landed file from the inbox, as it was listed."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from perennial.corpora.formats.documents import (
    CHANGED,
    EMPTY_FILE,
    TRUNCATED,
    UNKNOWN_FORMAT,
    VANISHED,
    Record,
)
from perennial.corpora.formats.readers import read_jsonl, read_parquet, read_txt
from perennial.corpora.manifest import IngestSettings
from perennial.corpora.names import file_format
from perennial.errors import InputMoved

if TYPE_CHECKING:
    from perennial.corpora.ingest.partition import Span
    from perennial.corpora.manifest import InputFile
    from perennial.store import Store

_BUFFER_BYTES = 1 << 20
_DAMAGE_BYTES = 1 << 14
"""What decompresses at once: where the stream breaks off, up to so much readable text is lost."""


class _Stream(io.RawIOBase):
    """A raw stream that counts what it gave and remembers the storage's own failure.

    Decompressors and Parquet report damaged data as OSError too: only what `failure` holds came
    from the storage, and must not be taken for bad input.
    """

    def __init__(self, source: BinaryIO, at_once: int = _BUFFER_BYTES) -> None:
        self._source = source
        self._at_once = at_once
        self.failure: Exception | None = None
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read(min(len(buffer), self._at_once))
        except Exception as error:
            self.failure = error
            raise
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def read_span(
    corpus: Store, file: InputFile, span: Span, settings: IngestSettings
) -> Iterator[Record]:
    """The records of a part of a file of `corpus` (the corpus's folder in the inbox).

    Raises InputMoved, possibly after records, when the file is gone or another than was listed.
    """
    form = file_format(file.name)
    if form is None:
        yield Record(0, reason=UNKNOWN_FORMAT, lost_bytes=file.size_bytes)
        return
    _check_unchanged(corpus, file, span)
    if file.size_bytes == 0:
        yield Record(0, reason=EMPTY_FILE)
        return
    try:
        source = corpus.open(file.name)
    except FileNotFoundError:
        raise InputMoved(span.file, VANISHED) from None
    with source:
        raw = _Stream(source)
        try:
            yield from _records(raw, form, file, span, settings)
            if raw.failure is not None:
                raise raw.failure
        except FileNotFoundError:
            raise InputMoved(span.file, VANISHED) from None
    _check_unchanged(corpus, file, span)


def _check_unchanged(corpus: Store, file: InputFile, span: Span) -> None:
    try:
        info = corpus.info(file.name)
    except FileNotFoundError:
        raise InputMoved(span.file, VANISHED) from None
    if (info.size_bytes, info.etag) != (file.size_bytes, file.etag):
        raise InputMoved(span.file, CHANGED)


def _records(
    raw: _Stream, form: tuple[str, str], file: InputFile, span: Span, settings: IngestSettings
) -> Iterator[Record]:
    kind, compression = form
    stream = io.BufferedReader(raw, _BUFFER_BYTES)
    if kind == ".parquet":
        yield from read_parquet(stream, span.start, span.end, file.size_bytes, settings)
    elif compression:
        yield from _compressed(stream, kind, compression, raw, file, settings)
    else:
        yield from _text(stream, kind, span.start, span.end, settings)


def _compressed(
    stream: BinaryIO,
    kind: str,
    compression: str,
    raw: _Stream,
    file: InputFile,
    settings: IngestSettings,
) -> Iterator[Record]:
    if compression == ".gz":
        opened: Any = gzip.GzipFile(fileobj=stream)
    else:
        import pyarrow as pa

        opened = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
    text = _Stream(cast(BinaryIO, opened), _DAMAGE_BYTES)
    try:
        yield from _text(io.BufferedReader(text, _BUFFER_BYTES), kind, 0, None, settings)
        if text.position == 0:
            yield Record(0, reason=EMPTY_FILE, detail="nothing was compressed")
    except (EOFError, OSError, zlib.error) as error:
        # `position` is where the text ends; the line that it breaks off in is part of the loss.
        lost = max(0, file.size_bytes - stream.tell())
        yield Record(text.position, reason=TRUNCATED, detail=str(error)[:200], lost_bytes=lost)


def _text(
    stream: BinaryIO, kind: str, start: int, end: int | None, settings: IngestSettings
) -> Iterator[Record]:
    if kind == ".jsonl":
        return read_jsonl(stream, start, end, settings)
    return read_txt(stream, settings)
