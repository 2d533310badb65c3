"""Opening landed files: format and compression by name, and spans read as they were listed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

# Imported for their registration.
from perennial.corpora.formats import (  # noqa: F401
    arrow,
    csv_rows,
    json_values,
    jsonl,
    megatron,
    npy,
    parquet,
    tar,
    text,
    warc,
)
from perennial.corpora.formats.base import (
    CHANGED,
    EMPTY_FILE,
    FILE_NAME,
    FORMATS,
    HARMLESS,
    INVALID_UTF8,
    UNKNOWN_FORMAT,
    UNREADABLE,
    VANISHED,
    FileFormat,
    FilePart,
    FileSpan,
    Record,
)
from perennial.corpora.formats.compression import COMPRESSIONS, DecompressedStream
from perennial.corpora.formats.counting_stream import BUFFER_BYTES, CountingStream
from perennial.corpora.formats.hints import HEAD_BYTES, describe_head
from perennial.errors import Altered, InputError, InputMoved
from perennial.store import check_object
from perennial.store.keys import valid_key

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings, InputFile
    from perennial.store import Store

_SHORT_NAMES = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}
"""usual names of compressed archives, by their last suffix"""


class FileKind(NamedTuple):
    """The format of a file, and the suffix of the compression around it ("" for none)."""

    format: FileFormat
    compression: str

    @property
    def splittable(self) -> bool:
        """Return whether parts of the file can be read by themselves."""
        return self.format.splittable and not self.compression

    def describe_other(self, are_ids: bool) -> str:
        """Return why the format does not hold the documents of a corpus; "" if it does.

        Args:
            are_ids: whether the corpus is declared as token ids.
        """
        if not are_ids and not self.format.holds_text:
            return "it holds token ids; declare them: corpora.read.NAME.tokens"
        if are_ids and not self.format.holds_ids:
            return "it holds text, and the corpus is declared as token ids"
        return ""

    @property
    def expansion(self) -> int:
        """Return the bytes of text in a stored byte, roughly."""
        return self.format.expansion * COMPRESSIONS.get(self.compression, 1)


def find_kind(name: str) -> FileKind | None:
    """Return what a file is by its suffixes, such as `.jsonl.gz`; None if that is unknown.

    Raises InputError for a plug-in that is broken or takes a suffix that is in use.
    """
    _load_plugins()
    lowered = name.lower()
    for short, whole in _SHORT_NAMES.items():
        if lowered.endswith(short):
            lowered = lowered.removesuffix(short) + whole
    compression = next((suffix for suffix in COMPRESSIONS if lowered.endswith(suffix)), "")
    stem = lowered.removesuffix(compression)
    matches = {
        suffix: FORMATS[key]
        for key in FORMATS
        for suffix in FORMATS[key].suffixes
        if stem.endswith(suffix)
    }
    if not matches:
        return None
    # The longest suffix is the most specific one: `.log.txt` of a plug-in goes before `.txt`.
    form = _instance(matches[max(matches, key=len)])
    return None if compression and not form.compressible else FileKind(form, compression)


def find_companions(names: Iterable[str]) -> frozenset[str]:
    """Return the files of a corpus that programs left beside its data; see `FileFormat`.

    Args:
        names: names of all files of the corpus.
    """
    _load_plugins()
    all_names, beside = list(names), set[str]()
    for form in (FORMATS[key] for key in FORMATS if FORMATS[key].companions):
        likely = {name for name in all_names if _matches(name, form.companions)}
        data = [n for n in all_names if n not in likely and n.lower().endswith(form.suffixes)]
        folders = {str(folder) for name in data for folder in PurePosixPath(name).parents}
        beside |= {name for name in likely if str(PurePosixPath(name).parent) in folders}
    return frozenset(beside)


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name.rpartition("/")[2], glob) for glob in globs)


def describe_suffixes() -> str:
    """Return the suffixes that a corpus may hold, for a message."""
    _load_plugins()
    forms = [FORMATS[key] for key in FORMATS]
    plain = sorted(suffix for form in forms for suffix in form.suffixes)
    whole = sorted(suffix for form in forms if not form.compressible for suffix in form.suffixes)
    but = f"all but {_join(whole, 'and')}" if whole else "all"
    return f"{_join(plain, 'or')} ({but} also with {_join([*COMPRESSIONS], 'or')})"


def _join(words: list[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


@cache
def _load_plugins() -> None:
    # Ray's workers look up formats too, and have loaded no run file.
    FORMATS.load_plugins()
    owners: dict[str, str] = {}
    for key in FORMATS:
        for suffix in FORMATS[key].suffixes:
            if suffix in owners:
                raise InputError(
                    f"package {FORMATS.provider(key)}",
                    f"{FORMATS.group}: {key}",
                    f"its suffix {suffix} belongs to the format {owners[suffix]!r}",
                    "give it another suffix",
                    code="plugin-suffix-taken",
                )
            owners[suffix] = key


@cache
def _instance(form: type[FileFormat]) -> FileFormat:
    return form()


def read_span(
    corpus: Store,
    file: InputFile,
    span: FileSpan,
    settings: IngestSettings,
    loss: Record | None = None,
) -> Iterator[Record]:
    """Yield the records of a part of a landed file.

    A file whose digest was promised is hashed while it is read, where it is read as a whole and
    from its beginning to its end. Otherwise the part that begins the file stands for the whole,
    which is read once more.

    Args:
        corpus: the corpus's folder in the inbox.
        file: the file as it was listed.
        span: the stored bytes to read.
        settings: how documents are found in it.
        loss: what an earlier reading yielded for a damaged file; it is yielded where it begins, and
            nothing behind it, so that no reading of that file meets it again.

    Raises:
        InputMoved: possibly after records, when the file is gone or another than was listed, or
            what was read of it has another digest than was promised.
    """
    kind, problem = find_kind(file.name), check_file_name(file.name)
    if problem:
        lost = span.end - span.start
        yield Record(span.start, reason=FILE_NAME, detail=problem, lost_bytes=lost)
        return
    if kind is None:
        # Nothing says that it holds documents: a README is counted by its bytes alone.
        yield Record(0, reason=UNKNOWN_FORMAT, lost_bytes=file.size_bytes, lost_documents=0)
        return
    if problem := kind.describe_other(settings.tokens is not None):
        yield Record(0, b"", "", UNKNOWN_FORMAT, problem, file.size_bytes, 0)
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
        is_whole = (span.start, span.end) == (0, file.size_bytes)
        raw = CountingStream(source, hashed=is_whole and bool(file.sha256))
        stream = io.BufferedReader(raw, BUFFER_BYTES)
        neighbour = partial(_open_beside, corpus, file.name, raw)
        part = FilePart(stream, span.start, span.end, file.size_bytes, neighbour)
        try:
            yield from _read_part(kind, part, settings, raw, loss)
            digest = raw.finish_digest() if is_whole else None
        except FileNotFoundError:
            raise InputMoved(span.file, VANISHED) from None
    if file.sha256 and span.start == 0:
        _check_digest(corpus, file, span, digest)
    # Once more, since the file may have been replaced while it was read.
    _check_unchanged(corpus, file, span)


def _open_beside(corpus: Store, name: str, raw: CountingStream, suffix: str) -> BinaryIO | None:
    """Open the file of the same name with another suffix; None where there is none.

    Args:
        corpus: the corpus's folder in the inbox.
        name: of the file.
        raw: the file's stream, which remembers a failure of the storage here too.
        suffix: in the place of the file's own.
    """
    try:
        source = corpus.open(f"{name[: name.rindex('.')]}{suffix}")
    except FileNotFoundError:
        return None
    return io.BufferedReader(CountingStream(source, owner=raw), BUFFER_BYTES)


def _read_part(
    kind: FileKind,
    part: FilePart,
    settings: IngestSettings,
    raw: CountingStream,
    loss: Record | None,
) -> Iterator[Record]:
    """Yield the records of a part, and one for an exception of any class, unless the storage's."""
    last = part.start - 1
    try:
        if not kind.compression and kind.format.is_text and (wrong := _check_text(part)):
            records = iter([wrong] if part.start == 0 else [])
        elif kind.compression:
            records = _read_compressed(kind, part, settings, loss)
        else:
            records = _stop_before(loss, kind.format.read(part, settings))
        for record in records:
            yield record
            last = record.offset
    except Exception as error:
        # A library, or a format of another package, met what it was not made for. That is wrong
        # with the file, and must not cost the others.
        if raw.failure is None:
            detail = f"{type(error).__name__}: {error}"[:200]
            lost = (part.end or part.size_bytes) - part.start
            yield Record(last + 1, reason=UNREADABLE, detail=detail, lost_bytes=lost)
    if raw.failure is not None:
        raise raw.failure


def _stop_before(loss: Record | None, records: Iterator[Record]) -> Iterator[Record]:
    """Yield the records before a loss that an earlier reading met, and it; else all."""
    for record in records:
        if loss is not None and record.offset >= loss.offset:
            break
        yield record
    if loss is not None:
        yield loss


def _check_text(part: FilePart) -> Record | None:
    """Return the record of a file that is no text in UTF-8, by how it begins."""
    stream = cast(io.BufferedReader, part.stream)
    if part.start:
        stream.seek(0)
    try:
        detail = describe_head(stream.peek(HEAD_BYTES)[:HEAD_BYTES])
    except OSError:
        return None  # the decoder's; the format meets it again
    if not detail:
        return None
    return Record(0, reason=INVALID_UTF8, detail=detail, lost_bytes=part.size_bytes)


def check_file_name(name: str) -> str:
    """Return what is wrong with a file's name, or "" for a name that every store takes."""
    try:
        valid_key(name)
    except ValueError:
        return (
            "its name has a backslash, a line break, bytes that are not UTF-8 or a part that no "
            "store takes; rename it"
        )
    return ""


def read_evaluation_texts(
    source: BinaryIO, kind: FileKind, size_bytes: int, settings: IngestSettings
) -> Iterator[str]:
    """Yield the evaluation texts of an open file.

    Args:
        source: the stored bytes.
        kind: the file's format and compression.
        size_bytes: the size of the stored file.
        settings: how documents are found in it.

    Raises:
        ValueError: for what is no text, and for a damaged file.
    """
    stream = io.BufferedReader(CountingStream(source), BUFFER_BYTES)
    if not kind.compression:
        part = FilePart(stream, 0, size_bytes, size_bytes)
        yield from kind.format.read_evaluation_texts(part, settings)
        return
    raw = DecompressedStream(
        stream, size_bytes, kind.compression, max_window_bytes=settings.max_window_bytes
    )
    part = FilePart(io.BufferedReader(raw, BUFFER_BYTES), 0, None, size_bytes)
    try:
        yield from kind.format.read_evaluation_texts(part, settings)
    except OSError as error:
        lost = raw.describe_loss(0, 0)
        raise error if lost is None else ValueError(lost.detail) from error


def _check_digest(corpus: Store, file: InputFile, span: FileSpan, digest: str | None) -> None:
    """Raise InputMoved unless a file has the promised digest.

    Args:
        corpus: the corpus's folder in the inbox.
        file: the file as it was listed.
        span: the part that was read.
        digest: of what was read; None to read the whole file.
    """
    actual = digest or file.sha256
    if digest is None:
        try:
            check_object(corpus, file.name, file.sha256)
        except Altered as altered:
            if not altered.actual:
                raise InputMoved(span.file, VANISHED) from None
            actual = altered.actual
    if actual != file.sha256:
        raise InputMoved(span.file, CHANGED, f"found sha256 {actual}")


def _check_unchanged(corpus: Store, file: InputFile, span: FileSpan) -> None:
    try:
        info = corpus.info(file.name)
    except FileNotFoundError:
        raise InputMoved(span.file, VANISHED) from None
    if info.size_bytes != file.size_bytes:
        raise InputMoved(span.file, CHANGED, f"found {info.size_bytes} bytes")
    if info.etag != file.etag:
        if not file.sha256:
            raise InputMoved(span.file, CHANGED, f"found etag {info.etag}")
        _check_digest(corpus, file, span, None)  # the same bytes, written again, are sound


def _read_compressed(
    kind: FileKind, stored: FilePart, settings: IngestSettings, loss: Record | None
) -> Iterator[Record]:
    """Yield the records of a compressed file, and a last one for what could not be decompressed."""
    limit = loss.offset if loss is not None and kind.format.byte_offsets else None
    raw = DecompressedStream(
        stored.stream, stored.size_bytes, kind.compression, limit, settings.max_window_bytes
    )
    part = FilePart(io.BufferedReader(raw, BUFFER_BYTES), 0, None, stored.size_bytes)
    read = _CleanPart(raw, kind.format.byte_offsets)
    try:
        wrong = _check_text(part) if kind.format.is_text else None
        for record in [wrong] if wrong else kind.format.read(part, settings):
            if loss is not None and record.offset >= loss.offset:
                break
            yield record
            read.add(record)
        read.finish()
        if not raw.position and not raw.is_damaged:
            yield Record(0, reason=EMPTY_FILE, detail="nothing was compressed")
    except Exception:
        # Of any class: a format may turn damage that it meets into an error of its own.
        if loss is None and not _is_damaged(part, raw):
            raise
    if loss is None and read.documents:
        _is_damaged(part, raw)
    lost = raw.describe_loss(read.documents, read.text_bytes)
    if loss is not None:
        yield loss
    elif lost is not None:
        # The line that breaks off at `position` is part of the loss.
        yield Record(
            read.find_offset(lost.position),
            reason=lost.reason,
            detail=lost.detail[:200],
            lost_bytes=lost.stored_bytes,
            lost_documents=lost.documents,
            is_cut=lost.is_cut,
        )


def _is_damaged(part: FilePart, raw: DecompressedStream) -> bool:
    """Return whether a compressed file is damaged, if need be where its format did not read it.

    A format that meets nonsense may stop before the checksum of what it took.
    """
    try:
        while not raw.is_damaged and part.stream.read1(BUFFER_BYTES):
            pass
    except OSError:
        if not raw.is_damaged:
            raise
    return raw.is_damaged


class _CleanPart:
    """The part of a compressed file that was read before any bad record.

    Behind a flipped bit is other text, with other ends of lines: this part says how dense documents
    are.

    Args:
        raw: the file.
        byte_offsets: whether the offsets of its records are bytes of its text.

    Attributes:
        documents: records of the part.
        text_bytes: bytes of text that held them.
    """

    def __init__(self, raw: DecompressedStream, byte_offsets: bool) -> None:
        self._raw, self._byte_offsets = raw, byte_offsets
        self._is_clean = True
        self._next = self._unchecked = self._checked_position = 0
        self.documents = self.text_bytes = 0

    def add(self, record: Record) -> None:
        """Take note of a record that was read."""
        if self._raw.checked_position > self._checked_position:
            # Those before it were read when no more of the text than that was there.
            self._checked_position, self._unchecked = self._raw.checked_position, record.offset
        self._next = record.offset + 1
        self._is_clean = self._is_clean and (not record.reason or record.reason in HARMLESS)
        if self._is_clean:
            self.documents += 1
            self.text_bytes = record.offset if self._byte_offsets else self._raw.position

    def finish(self) -> None:
        """Take note that the format ended, as most do at the end of the text."""
        if self._is_clean:
            self.text_bytes = self._raw.position

    def find_offset(self, position: int) -> int:
        """Return the offset of the first record that may hold text behind a position.

        Args:
            position: the end of the text that can be relied on.
        """
        if self._byte_offsets:
            return position
        checked = self._raw.checked_position
        is_all = position == self._raw.position or checked > self._checked_position
        return self._next if is_all else self._unchecked
