"""Tar archives, WebDataset's among them: documents are members, or lines of members."""

from __future__ import annotations

import json
import math
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from typing import TYPE_CHECKING, Self, cast

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
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
"""types of headers that say something about members, and are read as a whole"""
_LONGEST_HEADER = 1 << 20


@FORMATS.register("tar")
class TarFormat(FileFormat):
    """Members that follow each other and have one name up to its first dot are a sample.

    Its `.txt` member is a document as a whole, whatever `txt_documents` says; without one, the
    object in its `.json` member is one, and each line of a `.jsonl` member. Beside a `.txt` member
    the `.json` gives the domain. A sample without any of them, such as an image, is set aside as
    `missing-text`. Members below names that begin with a dot or an underscore are passed over.
    Archives behind each other in a file are read. An offset is the byte at which a member, or the
    line in it, begins. `.tgz` is `.tar.gz`, and so are
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
            "`missing-text` for a sample without text; `unreadable` for a sparse member, for a "
            "damaged header or a cut-off member, and what follows it"
        ),
    )

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the documents of an archive; see `FileFormat.read`."""
        sample, seen, position = _Sample("", 0), False, 0
        try:
            with _StrictArchive.open(
                fileobj=part.stream,
                mode="r|",
                bufsize=_BUFFER_BYTES,
                tarinfo=_StrictInfo,
                ignore_zeros=True,
            ) as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # it keeps all
                    position, name = member.offset, member.name.removeprefix("./")
                    if not member.isfile() or _is_hidden(name):
                        continue
                    seen, (key, suffix) = True, _split_name(name)
                    if sample.key != key or suffix in sample.members or suffix in _LINES:
                        yield from sample.finish(settings)
                        sample = _Sample(key, member.offset)
                    if suffix in (*_WHOLE, *_LINES) and member.issparse():
                        detail = f"{name} is a sparse member; archive it without --sparse"
                        yield Record(member.offset, reason=UNREADABLE, detail=detail[:200])
                        continue
                    content = cast(BufferedReader, archive.extractfile(member))
                    if suffix in _LINES:
                        lines = FilePart(content, 0, None, member.size)
                        for record in JsonLinesFormat().read(lines, settings):
                            position = member.offset_data + record.offset
                            yield record._replace(offset=position)
                        position = archive.offset
                    else:
                        sample.add(suffix, member, content, longest_line(settings))
                position = archive.offset
        except tarfile.TarError as error:
            if isinstance(error.__context__, zlib.error | EOFError | OSError):
                raise error.__context__ from None  # of the compression around it, or the storage
            yield from sample.finish(settings)
            lost = max(0, part.size_bytes - part.stored_bytes(position))
            detail = f"the archive is damaged or cut off: {error}"[:200]
            is_cut = isinstance(error, _CutOff) or "unexpected end" in str(error)
            yield Record(
                position + 1, reason=UNREADABLE, detail=detail, lost_bytes=lost, is_cut=is_cut
            )
            return
        yield from sample.finish(settings)
        if not seen:
            yield Record(0, reason=EMPTY_FILE, detail="no members")


class _CutOff(tarfile.ReadError):
    """An archive ends where a header must be."""


class _StrictArchive(tarfile.TarFile):
    """An archive, and those that were appended to it as files are (`cat a.tar b.tar`).

    has_ended: whether the last header was the mark of an end.
    """

    has_ended = False


class _StrictInfo(tarfile.TarInfo):
    """A header that is not taken for the end of the archive when it is damaged."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return the header in a block; less than a block of zeros pads the file."""
        is_padding = 0 < len(buf) < tarfile.BLOCKSIZE and not buf.strip(b"\0")
        return super().frombuf(bytes(tarfile.BLOCKSIZE) if is_padding else buf, encoding, errors)

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        """Return the next header. Raises ReadError for one that is damaged or missing."""
        assert isinstance(archive, _StrictArchive)
        try:
            info = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.has_ended = True
            raise
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            if archive.has_ended and isinstance(error, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                raise
            raise _CutOff(str(error)) from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
        archive.has_ended = False
        return info

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Return the header that this one and those behind it make."""
        most = _LONGEST_HEADER if self.type in _EXTENSIONS else math.inf
        if not 0 <= self.size <= most:
            raise tarfile.ReadError(f"a header of type {self.type!r} of {self.size} bytes")
        info: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return info


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
