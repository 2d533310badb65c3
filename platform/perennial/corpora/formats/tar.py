"""Tar archives, WebDataset's among them: documents are members, or lines of members."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from typing import TYPE_CHECKING, cast

from perennial.corpora.formats.base import (
    ABSENT,
    EMPTY_FILE,
    FORMATS,
    MISSING_TEXT,
    TOO_LONG,
    UNREADABLE,
    FileFormat,
    FilePart,
    FormatNotes,
    Record,
    find_field,
    longest_line,
    make_record,
)
from perennial.corpora.formats.jsonl import JsonLinesFormat, parse_object

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings

_BUFFER_BYTES = 1 << 18
_WHOLE = (".txt", ".json")
"""suffixes of members that are one document, the first one first"""
_LINES = (".jsonl", ".ndjson")


@FORMATS.register("tar")
class TarFormat(FileFormat):
    """Members that follow each other and have one name up to its first dot are a sample.

    Its `.txt` member is a document as a whole, whatever `txt_documents` says; without one, the
    object in its `.json` member is one, and each line of a `.jsonl` member. Beside a `.txt` member
    the `.json` gives the domain. A sample without any of them, such as an image, is set aside as
    `missing-text`. Members below names that begin with a dot or an underscore are passed over. An
    offset is the byte at which a member, or the line in it, begins. `.tgz` is `.tar.gz`, and so are
    `.tbz2`, `.txz` and `.tzst`.
    """

    suffixes = (".tar",)
    notes = FormatNotes(
        document=(
            "a `.txt` member; without one, the object in the `.json` member; each line of a"
            " `.jsonl` or `.ndjson` member"
        ),
        offset="the byte at which the member, or the line in it, begins",
        limit="a member of four times `max_document`, or a line of one; one task a file",
        damage=(
            "`missing-text` for a sample without text; `unreadable` for a damaged header or"
            " a cut-off member, and what follows it"
        ),
    )

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the documents of an archive; see `FileFormat.read`."""
        limit = longest_line(settings)
        sample, seen, position = _Sample("", 0), False, 0
        try:
            with tarfile.open(
                fileobj=part.stream, mode="r|", bufsize=_BUFFER_BYTES, tarinfo=_StrictInfo
            ) as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # it keeps all
                    position, name = member.offset, member.name.removeprefix("./")
                    if not member.isfile() or _is_hidden(name):
                        continue
                    seen, (key, suffix) = True, _split_name(name)
                    content = cast(BufferedReader, archive.extractfile(member))
                    if sample.key != key or suffix in sample.members or suffix in _LINES:
                        yield from sample.finish(settings)
                        sample = _Sample(key, member.offset)
                    if suffix in _LINES:
                        lines = FilePart(content, 0, None, member.size)
                        for record in JsonLinesFormat().read(lines, settings):
                            yield record._replace(offset=member.offset_data + record.offset)
                    else:
                        sample.add(suffix, member, content, limit)
                position = archive.offset
        except tarfile.TarError as error:
            if isinstance(error.__context__, zlib.error | EOFError | OSError):
                raise error.__context__ from None  # of the compression around it, or the storage
            yield from sample.finish(settings)
            lost = max(0, part.size_bytes - part.stored_bytes(position))
            detail = f"the archive is damaged or cut off: {error}"[:200]
            yield Record(position + 1, reason=UNREADABLE, detail=detail, lost_bytes=lost)
            return
        yield from sample.finish(settings)
        if not seen:
            yield Record(0, reason=EMPTY_FILE, detail="no members")


class _StrictInfo(tarfile.TarInfo):
    """A header that is not taken for the end of the archive when it is damaged."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


@dataclass
class _Sample:
    """Members of one name while they pass.

    members: the place, the content (None for a too long one) and the bytes of its `.txt` and its
        `.json`, by suffix.
    others: suffixes of the other members.
    """

    key: str
    offset: int
    members: dict[str, tuple[int, bytes | None, int]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def add(
        self, suffix: str, member: tarfile.TarInfo, content: BufferedReader, limit: int
    ) -> None:
        """Take a member, whose content is kept if it may hold the text and has no more bytes."""
        if suffix in _WHOLE:
            data = None if member.size > limit else content.read()
            self.members[suffix] = (member.offset, data, member.size)
        else:
            self.others.append(suffix)

    def finish(self, settings: IngestSettings) -> Iterator[Record]:
        """Yield the document of the sample, or the reason why it has none."""
        chosen = next((suffix for suffix in _WHOLE if suffix in self.members), None)
        if chosen is None:
            if self.others:
                detail = f"{self.key} has {', '.join(self.others)}, and no .txt, .json or .jsonl"
                yield Record(self.offset, reason=MISSING_TEXT, detail=detail[:200])
            return
        offset, data, size = self.members[chosen]
        if data is None:
            yield Record(offset, reason=TOO_LONG, detail=f"a member of {size} bytes")
        elif chosen == ".json":
            yield from parse_object(offset, data, settings)
        else:
            domain, *fields = self._find([settings.domain_field, *settings.other_fields])
            text = data.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
            yield make_record(offset, text, domain, settings, fields)

    def _find(self, names: list[str]) -> list[object]:
        """Return the values of fields of the `.json` member; None for none, and of the name ""."""
        data = self.members.get(".json", (0, None, 0))[1]
        value = None
        if any(names) and data is not None:
            with suppress(ValueError):  # it is no document, and the text is sound
                value = json.loads(data)
        fields = (find_field(value, n) if n and isinstance(value, dict) else None for n in names)
        return [None if field is ABSENT else field for field in fields]


def _split_name(name: str) -> tuple[str, str]:
    """Return a member's sample, which is its name up to the first dot, and its last suffix."""
    folder, slash, base = name.rpartition("/")
    stem, dot, rest = base.partition(".")
    return f"{folder}{slash}{stem}", (dot + rest.rpartition(".")[2]).lower()


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))
