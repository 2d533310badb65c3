"""Web archives: the text that a crawler extracted, as Common Crawl's WET files hold it.

Of the standard (ISO 28500) no more is read than the frame of a record: a version, named fields, an
empty line, and as many bytes as Content-Length says. Libraries for it decompress as well, which is
done before a format sees the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from perennial.corpora.formats.base import (
    EMPTY_FILE,
    FORMATS,
    MISSING_TEXT,
    TOO_LONG,
    UNREADABLE,
    FileFormat,
    FilePart,
    FormatNotes,
    Record,
    make_record,
)

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings

_FRAME = frozenset({"warc-type", "content-length"})
_LONGEST_FIELD = 1 << 16
_SKIP_BYTES = 1 << 18
_ABOUT = frozenset({"warcinfo", "request", "metadata", "revisit", "continuation"})
"""types of records that are about other records"""


@FORMATS.register("warc")
class WarcFormat(FileFormat):
    """A `conversion` record is a document: the plain text of a page.

    `domain_field` names a field of the record's header, such as `WARC-Target-URI`. Pages as a
    server sent them (`response`, `resource`) are set aside as `missing-text`; records about others
    are passed over. An offset is a record's first byte.
    """

    suffixes = (".warc", ".wet")
    notes = FormatNotes(
        document=(
            "a `conversion` record: the text of a page; `domain_field` names a field of its header"
        ),
        limit="a record of `max_document`; one task a file",
        damage=(
            "`missing-text` for each page as its server sent it; `unreadable` for bytes "
            "that belong to no record and for a record that is cut off or has another length "
            "than it says"
        ),
    )

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the documents of a file; see `FileFormat.read`."""
        archive, records = _Archive(part), 0
        domain_name = settings.domain_field.lower()
        other_names = [name.lower() for name in settings.other_fields]
        while archive.find_record():
            records += 1
            fields = archive.read_fields({*_FRAME, domain_name, *other_names})
            kind, size = fields.get("warc-type", ""), fields.get("content-length", "")
            if archive.skipped_bytes:
                yield archive.describe_damage()
            begin = archive.begin
            if not size.isascii() or not size.isdigit():
                detail = f"a {kind} record without a length"
                yield Record(begin, reason=UNREADABLE, detail=detail, is_cut=archive.is_cut)
                continue
            is_text, length = kind == "conversion", int(size)
            fits = length <= settings.max_document_bytes
            body, taken = archive.read_body(length, keep=is_text and fits)
            if taken < length:
                detail = f"it ends {length - taken} bytes before the end of a {kind} record"
                lost = part.stored_bytes(taken)
                yield Record(begin, reason=UNREADABLE, detail=detail, lost_bytes=lost, is_cut=True)
            elif not archive.is_at_end():
                # It may have taken the beginning of a text for the whole, or other records with it.
                detail = f"a {kind} record does not end behind the {length} bytes that it says"
                lost = part.stored_bytes(length)
                yield Record(begin, reason=UNREADABLE, detail=detail, lost_bytes=lost)
            elif is_text and fits:
                domain = fields.get(domain_name)
                others = [fields.get(name) for name in other_names]
                yield make_record(begin, body, domain, settings, others)
            elif is_text:
                yield Record(begin, reason=TOO_LONG, detail=f"a text of {length} bytes")
            elif kind not in _ABOUT:
                detail = f"a {kind or 'nameless'} record is no text; land the crawl's WET files"
                yield Record(begin, reason=MISSING_TEXT, detail=detail)
        if archive.skipped_bytes:
            yield archive.describe_damage()
        elif not records:
            yield Record(0, reason=EMPTY_FILE, detail="no records")


class _Archive:
    """The place in a file of records.

    Attributes:
        begin: the first byte of the record that was found last.
        skipped_bytes: bytes before it that belong to no record.
        is_cut: whether the file ended in its header.
    """

    def __init__(self, part: FilePart) -> None:
        self._part = part
        self._position = 0
        self._held = b""
        self.begin = 0
        self.skipped_bytes = 0
        self.is_cut = False

    def find_record(self) -> bool:
        """Go behind the first line of the next record; return False at the end of the file."""
        self.skipped_bytes = 0
        whole_line = True
        while True:
            self.begin = self._position
            line = self._read_line()
            if not line:
                return False
            if whole_line and line.startswith(b"WARC/") and line.strip():
                return True
            whole_line = line.endswith(b"\n")
            self.skipped_bytes += len(line) if line.strip() else 0

    def read_fields(self, wanted: Collection[str]) -> dict[str, str]:
        """Return the named fields of a record, in lower case, and go behind the empty line.

        Args:
            wanted: names of those to return; a header may hold any number of others.
        """
        fields: dict[str, str] = {}
        while (line := self._read_line()).strip():
            name, _, value = line.decode("utf-8", "replace").partition(":")
            if (name := name.strip().lower()) in wanted:
                fields[name] = value.strip()
        self.is_cut = not line
        return fields

    def read_body(self, length: int, *, keep: bool) -> tuple[bytes, int]:
        """Return the next bytes, or none of them, and how many there were."""
        body = self._part.stream.read(length) if keep else b""
        taken = len(body)
        while not keep and taken < length:
            data = self._part.stream.read(min(_SKIP_BYTES, length - taken))
            if not data:
                break
            taken += len(data)
        self._position += taken
        return body, taken

    def is_at_end(self) -> bool:
        """Return whether an empty line, another record or the end of the file follows."""
        self._held = self._read_line()
        self._position -= len(self._held)
        return not self._held.strip() or self._held.startswith(b"WARC/")

    def describe_damage(self) -> Record:
        """Return the record of the bytes that were skipped before the one at `begin`."""
        lost = self._part.stored_bytes(self.skipped_bytes)
        detail = f"{self.skipped_bytes} bytes that belong to no record"
        return Record(self.begin - 1, reason=UNREADABLE, detail=detail, lost_bytes=lost)

    def _read_line(self) -> bytes:
        line, self._held = self._held or self._part.stream.readline(_LONGEST_FIELD), b""
        self._position += len(line)
        return line
