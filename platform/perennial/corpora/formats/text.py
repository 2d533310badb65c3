"""Plain text: a document is a paragraph, a line, or the whole file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perennial.corpora.formats.base import (
    FORMATS,
    TOO_LONG,
    FileFormat,
    FilePart,
    FormatNotes,
    Record,
    make_record,
    read_lines,
    read_text,
)

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings


@FORMATS.register("text")
class TextFormat(FileFormat):
    """Paragraphs between blank lines, lines, or the whole file, by `txt_documents`.

    An offset is the first byte of a document's first line. A file is not split: whether a line
    begins a paragraph depends on the lines before it.
    """

    suffixes = (".txt",)
    is_text = True
    notes = FormatNotes(
        document="a paragraph, up to a blank line; a line; or the file, by `txt_documents`",
        limit="a document of `max_document`; one task a file",
        damage="`invalid-utf8` or `too-long` for each such document alone",
    )

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the documents of a file; see `FileFormat.read`."""
        limit = settings.max_document_bytes
        begin, size, kept = 0, 0, bytearray()

        def document() -> Record:
            if size > limit:
                return Record(begin, reason=TOO_LONG, detail=f"a document of {size} bytes")
            return make_record(begin, bytes(kept).rstrip(b"\r\n"), None, settings)

        for offset, line, line_bytes in read_lines(part, settings):
            blank = line is not None and not line.strip()
            ends = settings.txt_documents == "line" or (
                blank and settings.txt_documents == "paragraph"
            )
            if size and ends:
                yield document()
                size, kept = 0, bytearray()
            if blank and not size:
                continue
            begin = begin if size else offset
            size += line_bytes
            # What is too long is measured, not kept.
            if line is not None and size <= limit:
                kept += line
        if size:
            yield document()

    def read_evaluation_texts(self, part: FilePart, settings: IngestSettings) -> Iterator[str]:
        """Yield the paragraphs, whatever `txt_documents` says: an item is a paragraph."""
        yield from filter(None, (text.strip() for text in read_text(part).split("\n\n")))
