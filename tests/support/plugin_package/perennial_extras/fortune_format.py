"""A file format: a fortune file, whose documents are divided by lines of a percent sign."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from perennial.corpora import IngestSettings
from perennial.corpora.formats.base import (
    TOO_LONG,
    FileFormat,
    FilePart,
    Record,
    make_record,
    read_lines,
)


class FortuneFormat(FileFormat):
    """What stands between two lines of `%` is a document; an offset is its first byte."""

    suffixes: ClassVar[tuple[str, ...]] = (".fortune",)

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the records of the whole file; it is not splittable."""
        begin, size, text = 0, 0, b""
        for offset, line, line_bytes in read_lines(part, settings):
            if line is not None and line.rstrip() == b"%":
                yield self._record(begin, size, text, settings)
                begin, size, text = offset + line_bytes, 0, b""
                continue
            size += line_bytes
            # What is too long is measured, not kept.
            text = text + line if line is not None and size <= settings.max_document_bytes else b""
        if size:
            yield self._record(begin, size, text, settings)

    def _record(self, begin: int, size: int, text: bytes, settings: IngestSettings) -> Record:
        if size > settings.max_document_bytes:
            return Record(begin, reason=TOO_LONG, detail=f"a document of {size} bytes")
        return make_record(begin, text.rstrip(b"\r\n"), None, settings)
