"""Base class of file formats: what a format implements, and the records that it yields."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Final, NamedTuple

from perennial.corpora.formats.hints import describe_bytes
from perennial.registry import Registry
from perennial.steps import RAISED

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings

TRUNCATED = "truncated"
"""the compressed stream ends early or is damaged"""
TRAILING = "trailing-bytes"
"""what follows the end of the compressed data is none"""
WINDOW = "zstd-window"
"""decompressing it takes more memory than is allowed"""
UNREADABLE = "unreadable"
"""not a file of its format, or a damaged one"""
INVALID_UTF8 = "invalid-utf8"
INVALID_JSON = "invalid-json"
INVALID_ROW = "invalid-row"
"""a row of a table in text whose quotes or number of fields are wrong"""
MISSING_TEXT = "missing-text"
TEXT_NOT_STRING = "text-not-string"
TOO_LONG = "too-long"
EMPTY_TEXT = "empty-text"
EMPTY_FILE = "empty-file"
UNKNOWN_FORMAT = "unknown-format"
FILE_NAME = "file-name"
"""no store can take the file's name"""
VANISHED = "vanished"
"""the file was removed after the corpus was listed"""
CHANGED = "changed"
"""the file was replaced after the corpus was listed"""

HARMLESS = frozenset({EMPTY_TEXT, EMPTY_FILE})
"""nothing was lost, so these do not count towards `max_bad_share`"""

MARGIN = 1.25
"""by which an estimate of what was lost exceeds the likeliest value, since it must not be less than
the truth"""

ABSENT: Final = object()
"""What `find_field` returns where there is no field of that name."""

COMPRESSION = 3
"""bytes of text in a compressed byte, roughly; see `FileFormat.expansion`"""


def counts_as_bad(reason: str) -> bool:
    """Return whether a record with that reason counts towards `max_bad_share`.

    What a step of the run file drops has the step's kind before a slash: it is dropped on purpose,
    unless the step failed on it.
    """
    step, _, why = reason.rpartition("/")
    return why == RAISED if step else reason not in HARMLESS


# A JSON line also holds other fields, and escapes make its text longer.
_LINE_FACTOR = 4
_SKIP_BYTES = 1 << 20
_FEWEST_DOCUMENTS = 4
_LONGEST_VALUE = 4096  # characters of a field
_TOO_DEEP = "nested too deeply"  # lists in lists, a thousand times
_BLANK = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u2060\ufeff"
_BOM = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """A document, or (with a reason) a part of a file that is not one.

    `offset` identifies the record in its file and decides its place in the shards: the byte at
    which it begins in the decompressed file, or its row number where a file is a table in binary
    form.

    A record with `lost_bytes` stands for a part of the file that could not be read: so many stored
    bytes, and `lost_documents` documents. Where these are None, the caller estimates both from what
    was read of this file and of others. `is_cut`: the file ends early, and does not say how long it
    was; `lost_bytes` are then those that are there. A loss may begin before records that were
    yielded already: those are not to be taken, since they are not what was written.

    `fields`: the values of `IngestSettings.other_fields`, None for none; () of a format that knows
    none.
    """

    offset: int
    text: bytes = b""
    domain: str = ""
    reason: str = ""
    detail: str = ""
    lost_bytes: int = 0
    lost_documents: int | None = None
    is_cut: bool = False
    fields: tuple[str | None, ...] = ()

    @property
    def is_loss(self) -> bool:
        """Return whether the record stands for a part of a file that could not be read."""
        return bool(self.lost_bytes or self.is_cut)


def estimate_documents(documents: int, read: int, lost: int) -> int | None:
    """Return how many documents a part held that was lost, of a density as in the rest.

    Args:
        documents: documents in the rest; too few of them say nothing.
        read: size of the rest, in any unit.
        lost: size of the lost part, in the same unit.
    """
    if documents < _FEWEST_DOCUMENTS or read <= 0:
        return None
    return max(1, math.ceil(MARGIN * documents * lost / read))


@dataclass(frozen=True)
class FileSpan:
    """Stored bytes [start, end) of the input file with that index."""

    file: int
    start: int
    end: int


@dataclass(frozen=True)
class FilePart:
    """An open file and the part of it to read.

    `stream` is seekable unless the file is compressed; then it is decompressed, `start` is 0 and
    `end` is None, because a compressed file is read as a whole. `size_bytes` is the size of the
    whole stored file. `neighbour` opens a file beside it, by its suffix.
    """

    stream: BufferedReader[Any]
    start: int
    end: int | None
    size_bytes: int
    neighbour: Callable[[str], BinaryIO | None] | None = None

    def open_beside(self, suffix: str) -> BinaryIO | None:
        """Open the file of the same name with another suffix; None where there is none."""
        return None if self.neighbour is None else self.neighbour(suffix)

    def stored_bytes(self, read: int) -> int:
        """Return about how many stored bytes hold `read` bytes of the stream."""
        return read if self.end is not None else read // COMPRESSION


class FormatNotes(NamedTuple):
    """Words of the reference about a format.

    Attributes:
        document: what one document is.
        offset: what the offset of a record is.
        limit: how much is in memory at once, and what is not read.
        damage: what a bad file gives.
    """

    document: str = ""
    offset: str = "the byte at which it begins"
    limit: str = ""
    damage: str = ""


class FileFormat(ABC):
    """A format of landed files; this docstring is the recipe for another one.

    Subclass it in one module, set the class variables and implement `read`. A built-in format
    registers itself with `@FORMATS.register(name)`; another package names its class in an entry
    point, and the package must be installed on every node that ingests:

        [project.entry-points."perennial.formats"]
        fortune = "my_package.fortune_format:FortuneFormat"

    Everything else follows from the class: landing and sources accept its suffixes (with .gz, .zst,
    .bz2 and .xz too where it is compressible), messages list them, and evaluation texts may come
    from it.

    An instance has no state: tasks in many processes read parts of one file, in any order, and a
    part is read again after a failure. So `read` must yield the same records for the same bytes.

    Attributes:
        suffixes: lower-case ends of file names, such as (".fortune",).
        companions: names, as globs, of files that programs leave beside such files and that hold no
            documents. They are ignored in a folder that holds files of the format, and above it.
        splittable: whether a plain file is divided into parts of bytes that are read in parallel.
            A record then belongs to the part that holds its first byte (of its line, of its row
            group): over any division of the file, every record is yielded exactly once.
        compressible: whether `read` can do with a stream that cannot seek, so that compressed
            files are read too.
        holds_text: whether documents are text; false for a format of token ids alone.
        holds_ids: whether documents may be token ids, in the field `settings.content_field`.
        is_text: whether a file is text in UTF-8 as a whole. One that begins like another encoding
            is then set aside with the encoding that fits, and is not read.
        byte_offsets: whether an offset is a byte of the decompressed file. Else, as the number of
            a row, it says nothing of how much of a compressed file was read.
        expansion: bytes of text in a stored byte, roughly. It influences how many shards a corpus
            has, and nothing else; it must never change for files that were ingested.
        notes: words for the reference, which has the built-in formats alone.
    """

    suffixes: ClassVar[tuple[str, ...]]
    companions: ClassVar[tuple[str, ...]] = ()
    splittable: ClassVar[bool] = False
    compressible: ClassVar[bool] = True
    holds_text: ClassVar[bool] = True
    holds_ids: ClassVar[bool] = False
    is_text: ClassVar[bool] = False
    byte_offsets: ClassVar[bool] = True
    expansion: ClassVar[int] = 1
    notes: ClassVar[FormatNotes] = FormatNotes()

    @abstractmethod
    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the records of a part of a file, in bounded memory and in the order of the file.

        Offsets must increase and be unique in the file. What is no document is yielded with a
        reason, by `make_record` or as a Record of its own with a reason in kebab-case, never
        raised: one bad line must not cost the rest of the file. Errors of the stream itself
        (OSError, EOFError) pass through; the caller distinguishes damage from a failing storage.

        Args:
            part: the open file, and the bytes of it to read. A format that is not splittable gets
                the whole file and may ignore `start` and `end`.
            settings: `text_field` and `domain_field` name a document's fields, and `other_fields`
                more of them, which a format may do without; `max_document_bytes` bounds its text.
        """

    def read_evaluation_texts(self, part: FilePart, settings: IngestSettings) -> Iterator[str]:
        """Yield the texts that documents to train must not repeat: every document by default.

        Args:
            part: the whole file.
            settings: how documents are found in it.

        Raises:
            ValueError: for what is no document, since what it repeats would be trained on unseen.
        """
        for record in self.read(part, settings):
            if record.reason and counts_as_bad(record.reason):
                raise ValueError(f"{record.reason} at {record.offset}: {record.detail}")
            if not record.reason:
                yield record.text.decode()


FORMATS: Registry[type[FileFormat]] = Registry("file format", "perennial.formats")


def make_record(
    offset: int,
    text: object,
    domain: object,
    settings: IngestSettings,
    fields: Sequence[object] = (),
) -> Record:
    """Return the document if its text is a string of valid UTF-8 (or such bytes) that fits.

    Anything else is returned with the reason why it is none.

    Args:
        offset: what identifies the record in its file.
        text: the value that was read as the document's text.
        domain: the value that was read as its domain; None for none.
        settings: bounds the size of a text.
        fields: the values that were read as its `other_fields`; None for none.
    """
    if text is None:
        return Record(offset, reason=MISSING_TEXT, detail="null")
    if not isinstance(text, str | bytes):
        return Record(offset, reason=TEXT_NOT_STRING, detail=type(text).__name__)
    if isinstance(text, bytes) and len(text) > settings.max_document_bytes:
        # Before it is decoded, which takes up to four times its size.
        return Record(offset, reason=TOO_LONG, detail=f"a text of {len(text)} bytes")
    try:
        data = text.encode() if isinstance(text, str) else text
        string = text if isinstance(text, str) else text.decode()
    except UnicodeError as error:
        return Record(offset, reason=INVALID_UTF8, detail=_describe_unicode(error))
    try:
        name = _shorten(_name_domain(domain))
        name.encode()
    except UnicodeError as error:
        detail = f"its domain: {_describe_unicode(error)}"
        return Record(offset, reason=INVALID_UTF8, detail=detail)
    if len(data) > settings.max_document_bytes:
        return Record(offset, reason=TOO_LONG, detail=f"a text of {len(data)} bytes")
    # The first character says of most texts that they are not blank.
    if not string[:1].strip(_BLANK) and not string.strip(_BLANK):
        return Record(offset, reason=EMPTY_TEXT)
    return Record(offset, data, name, fields=tuple(map(_plain, fields)))


def _plain(value: object) -> str | None:
    """Return what a field holds as text; None for nothing."""
    if value is None or value is ABSENT:
        return None
    if isinstance(value, bytes):
        text = value.decode(errors="replace")
    elif isinstance(value, str):
        text = value.encode(errors="replace").decode()
    else:
        try:
            text = json.dumps(value, default=str, ensure_ascii=True)
        except RecursionError:
            text = _TOO_DEEP
    return _shorten(text)


def _shorten(value: str) -> str:
    """Return a value that is kept beside a document, or the beginning of a very long one."""
    return value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}..."


def _name_domain(domain: object) -> str:
    if isinstance(domain, bytes):
        return domain.decode()
    try:
        return "" if domain is None else str(domain)
    except RecursionError:
        return _TOO_DEEP


def _describe_unicode(error: UnicodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return describe_bytes(error.object, error)
    return str(error)[-200:]


def find_field(fields: dict[str, Any], name: str) -> Any:
    """Return the value of a field, or ABSENT.

    Args:
        fields: an object that was read from JSON.
        name: of the field; where it has none, `a.b` is the field `b` of the object in its field
            `a`.
    """
    if name in fields:
        return fields[name]
    outer, dot, inner = name.partition(".")
    value = fields.get(outer) if dot else None
    return find_field(value, inner) if isinstance(value, dict) else ABSENT


def longest_line(settings: IngestSettings) -> int:
    """Return the most bytes that a line, a row or an object around a document's text may have."""
    return settings.max_document_bytes * _LINE_FACTOR


def read_lines(part: FilePart, settings: IngestSettings) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield (offset, line, bytes) of the lines that begin in a part; None for too long a line.

    Lines keep their ends. A byte-order mark at the beginning of the file is left out.

    Args:
        part: the open file, and the bytes of it to read.
        settings: `max_document_bytes` bounds a line, at four times as much.
    """
    limit = longest_line(settings)
    stream, offset = part.stream, part.start
    if offset:
        # The line that holds the byte before the part belongs to the part with that byte.
        stream.seek(offset - 1)
        offset += _skip_line(stream) - 1
    while part.end is None or offset < part.end:
        line = stream.readline(limit + 1)
        if not line:
            return
        size = len(line)
        if size > limit and not line.endswith(b"\n"):
            size += _skip_line(stream)
            yield offset, None, size
        else:
            yield offset, line.removeprefix(_BOM) if offset == 0 else line, size
        offset += size


def read_text(part: FilePart) -> str:
    """Return a whole part as text with plain newlines, for small files only.

    Raises ValueError where it is not UTF-8.
    """
    return part.stream.read().decode().replace("\r\n", "\n").replace("\r", "\n")


def _skip_line(stream: BinaryIO) -> int:
    """Read to the end of the line in bounded memory; return the bytes read."""
    skipped = 0
    while line := stream.readline(_SKIP_BYTES):
        skipped += len(line)
        if line.endswith(b"\n"):
            break
    return skipped
