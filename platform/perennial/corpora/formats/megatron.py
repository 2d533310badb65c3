"""`.bin` files of token ids: Megatron-LM's, with an `.idx` beside, or ids one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from perennial.corpora.formats.base import (
    FORMATS,
    TOO_LONG,
    UNREADABLE,
    FileFormat,
    FilePart,
    FormatNotes,
    Record,
)
from perennial.corpora.formats.id_stream import read_headless
from perennial.corpora.formats.token_ids import STORED, split_ids

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.corpora.manifest import IngestSettings

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEAD = np.dtype(
    [("magic", "S9"), ("version", "<u8"), ("code", "u1"), ("sequences", "<u8"), ("bounds", "<u8")]
)
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""types by code; 6 and 7 are numbers that are no ids"""
_SIZE, _POINTER = np.dtype("<i4"), np.dtype("<i8")
_DOCUMENTS_AT_ONCE = 1 << 16
_SEQUENCES_AT_ONCE = 1 << 18


@FORMATS.register("megatron")
class BinFormat(FileFormat):
    """`.bin`: the documents that Megatron-LM's `.idx` of the same name lists, or plain ids.

    Without an `.idx` the file holds ids of the declared `dtype`, each document ended by the
    end-of-document id, as nanoGPT and OLMo write them.
    """

    suffixes = (".bin",)
    splittable = True
    compressible = False
    holds_text = False
    holds_ids = True
    expansion = 2
    notes = FormatNotes(
        document="a document of the `.idx`; without one, the ids up to the end-of-document id",
        offset=("the number of its first id, and with an `.idx` that of its document added to it"),
        limit="a document of `max_document`, at 4 bytes an id; 64 Ki entries of the `.idx`",
        damage=(
            "`unreadable` for an `.idx` that is none or has another type, for what follows a place "
            "or a size that contradicts the others, for documents behind the end of the file, and "
            "without an `.idx` for a file of which every second id is 0: its ids are wider"
        ),
    )

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the documents that begin in the part; see `FileFormat.read`."""
        beside = part.open_beside(".idx")
        if beside is None:
            yield from read_headless(part, settings)
            return
        with beside as stream:
            try:
                index = MegatronIndex.read(stream)
            except ValueError as error:
                if part.start == 0:
                    detail = f"its .idx: {error}"[:200]
                    yield Record(0, reason=UNREADABLE, detail=detail, lost_bytes=part.size_bytes)
                return
            yield from _read_documents(part, index, settings)


@FORMATS.register("megatron-index")
class IdxFormat(FileFormat):
    """`.idx`: the index of Megatron-LM's `.bin` of the same name; it holds no document itself."""

    suffixes = (".idx",)
    compressible = False
    holds_text = False
    holds_ids = True
    expansion = 0
    notes = FormatNotes(
        document="none: it lists those of its `.bin`",
        offset="0",
        limit="its head",
        damage="`unreadable` where no `.bin` is beside it",
    )

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield a record where the file has no `.bin` beside it."""
        beside = part.open_beside(".bin")
        if beside is None:
            detail = "no .bin of that name is beside it"
            yield Record(0, reason=UNREADABLE, detail=detail, lost_bytes=part.size_bytes)
        else:
            beside.close()


@dataclass(frozen=True)
class MegatronIndex:
    """An open `.idx`: a size and a place of every sequence, and bounds of documents among them.

    Attributes:
        dtype: of the ids in the `.bin`.
        sequences: number of sequences.
        documents: number of documents, of one sequence or several.
    """

    stream: BinaryIO
    dtype: np.dtype[Any]
    sequences: int
    documents: int

    @classmethod
    def read(cls, stream: BinaryIO) -> MegatronIndex:
        """Return the index in a stream. Raises ValueError for what is none."""
        data = stream.read(_HEAD.itemsize)
        if not data.startswith(_MAGIC) or len(data) < _HEAD.itemsize:
            raise ValueError("it does not begin like an index of Megatron-LM")
        head = np.frombuffer(data, dtype=_HEAD)[0]
        if head["version"] != _VERSION:
            raise ValueError(f"version {head['version']}; version {_VERSION} is read")
        code = int(head["code"])
        if code not in _TYPES:
            raise ValueError(f"type {code}, which is none of ids")
        sequences, bounds = int(head["sequences"]), int(head["bounds"])
        entries = sequences * (_SIZE.itemsize + _POINTER.itemsize) + bounds * _POINTER.itemsize
        size = stream.seek(0, 2)
        # Behind them, a multimodal index has a byte for every sequence.
        if size not in (_HEAD.itemsize + entries, _HEAD.itemsize + entries + sequences):
            raise ValueError(f"{size} bytes do not hold its {sequences} sequences")
        if not bounds:
            raise ValueError("it has no bounds of documents")
        return cls(stream, np.dtype(_TYPES[code]), sequences, bounds - 1)

    def sizes(self, first: int, end: int) -> npt.NDArray[np.int64]:
        """Return the numbers of ids of sequences."""
        return self._entries(0, _SIZE, first, end)

    def places(self, first: int, end: int) -> npt.NDArray[np.int64]:
        """Return the bytes of the `.bin` at which sequences begin."""
        return self._entries(self.sequences * _SIZE.itemsize, _POINTER, first, end)

    def bounds(self, first: int, end: int) -> npt.NDArray[np.int64]:
        """Return the first sequences of documents; the number of all sequences ends them."""
        before = self.sequences * (_SIZE.itemsize + _POINTER.itemsize)
        return self._entries(before, _POINTER, first, end)

    def find_end(self) -> int:
        """Return the byte of the `.bin` at which the last sequence ends."""
        if not self.sequences:
            return 0
        last = self.sequences - 1
        place, size = (read(last, last + 1)[0] for read in (self.places, self.sizes))
        return int(place) + max(0, int(size)) * self.dtype.itemsize

    def find_document(self, byte: int) -> int:
        """Return the first document that does not begin before a byte of the `.bin`.

        Raises ValueError for bounds outside of the sequences.
        """
        low, high = 0, self.documents
        while low < high:
            middle = (low + high) // 2
            if self._place_of(middle) < byte:
                low = middle + 1
            else:
                high = middle
        return low

    def _place_of(self, document: int) -> int:
        sequence = int(self.bounds(document, document + 1)[0])
        if not 0 <= sequence <= self.sequences:
            raise ValueError(f"document {document} begins at sequence {sequence}")
        if sequence == self.sequences:  # an empty document at the end
            return int(np.iinfo(np.int64).max)
        return int(self.places(sequence, sequence + 1)[0])

    def _entries(
        self, before: int, dtype: np.dtype[Any], first: int, end: int
    ) -> npt.NDArray[np.int64]:
        self.stream.seek(_HEAD.itemsize + before + first * dtype.itemsize)
        data = self.stream.read((end - first) * dtype.itemsize)
        return np.frombuffer(data, dtype=dtype).astype(np.int64)


class _Listed(NamedTuple):
    """A document of an index: its number, and the bytes of the `.bin` that hold its ids."""

    number: int
    begin: int
    end: int


class _ContradictionError(ValueError):
    """Entries of an index that contradict each other, from a document on."""

    def __init__(self, number: int, problem: str) -> None:
        super().__init__(problem)
        self.number = number


def _read_documents(
    part: FilePart, index: MegatronIndex, settings: IngestSettings
) -> Iterator[Record]:
    """Yield the documents of an index that begin in a part of its `.bin`, and what is wrong."""
    end = part.size_bytes if part.end is None else part.end
    is_last = end == part.size_bytes
    number, place = 0, part.start
    try:
        number = index.find_document(part.start) if part.start else 0
        for listed in _list_documents(index, number, part.start or None, part.size_bytes):
            if listed.begin >= end and not is_last:
                return
            number, place = listed.number, listed.begin
            if listed.end > part.size_bytes:
                raise _ContradictionError(number, "the file ends before its documents do")
            yield from _read_document(part, index, listed, settings)
            number, place = listed.number + 1, listed.end
    except ValueError as wrong:
        number = wrong.number if isinstance(wrong, _ContradictionError) else number
        yield Record(
            place // index.dtype.itemsize + number,
            reason=UNREADABLE,
            detail=f"document {number} of its .idx: {wrong}"[:200],
            lost_bytes=max(1, end - place),
            lost_documents=max(0, index.documents - number) if is_last else None,
        )
        return
    behind = part.size_bytes - index.find_end()
    if is_last and behind > 0:
        detail = f"{behind} bytes behind the last document of its .idx"
        offset = index.find_end() // index.dtype.itemsize + index.documents
        yield Record(offset, reason=UNREADABLE, detail=detail, lost_bytes=behind)


def _read_document(
    part: FilePart, index: MegatronIndex, listed: _Listed, settings: IngestSettings
) -> Iterator[Record]:
    assert settings.tokens is not None
    offset = listed.begin // index.dtype.itemsize + listed.number
    count = (listed.end - listed.begin) // index.dtype.itemsize
    if count * STORED.itemsize > settings.max_document_bytes + STORED.itemsize:  # and its end
        yield Record(offset, reason=TOO_LONG, detail=f"a document of {count} ids")
        return
    part.stream.seek(listed.begin)
    ids = np.frombuffer(part.stream.read(listed.end - listed.begin), dtype=index.dtype)
    yield from split_ids(offset, ids, None, settings, settings.tokens)


def _list_documents(
    index: MegatronIndex, first: int, begin: int | None, size_bytes: int
) -> Iterator[_Listed]:
    """Yield the documents of an index.

    Args:
        index: an open index.
        first: number of the first one to yield.
        begin: the byte before which that one does not begin; None for the beginning of the file.
        size_bytes: size of the `.bin`, where documents without any sequence stand.

    Raises:
        _ContradictionError: after the documents before it.
    """
    expected = 0 if begin is None else None
    while first < index.documents:
        taken = min(_DOCUMENTS_AT_ONCE, index.documents - first)
        bounds = index.bounds(first, first + taken + 1)
        while taken > 1 and bounds[taken] - bounds[0] > _SEQUENCES_AT_ONCE:
            taken //= 2
        bounds = bounds[: taken + 1]
        wrong = (np.diff(bounds) < 0) | (bounds[1:] > index.sequences) | (bounds[:-1] < 0)
        if bounds[-1] - bounds[0] > _SEQUENCES_AT_ONCE:
            wrong[:] = True
        sound = int(np.argmax(wrong)) if wrong.any() else taken
        low, high = int(bounds[0]), int(bounds[sound])
        places, broken = _join(index, low, high, expected, size_bytes)
        for row in range(sound):
            if broken is not None and bounds[row + 1] > broken:
                raise _ContradictionError(
                    first + row, f"sequence {broken} has a size or a place that does not fit"
                )
            ends = places[bounds[row] - low], places[bounds[row + 1] - low]
            yield _Listed(first + row, int(ends[0]), int(ends[1]))
        if sound < taken:
            raise _ContradictionError(first + sound, "its sequences are not behind each other")
        first, expected = first + taken, int(places[-1])


def _join(
    index: MegatronIndex, low: int, high: int, expected: int | None, size_bytes: int
) -> tuple[npt.NDArray[np.int64], int | None]:
    """Return the bytes between sequences `(high - low + 1,)`, and the first one that is wrong.

    Args:
        index: an open index.
        low: the first sequence.
        high: the one behind the last.
        expected: the byte at which the first one must begin; None for any.
        size_bytes: size of the `.bin`.
    """
    if low == high:
        return np.array([size_bytes if expected is None else expected]), None
    places, sizes = index.places(low, high), index.sizes(low, high)
    ends = places + np.maximum(sizes, 0) * index.dtype.itemsize
    begins = np.concatenate([[places[0] if expected is None else expected], ends[:-1]])
    wrong = (places != begins) | (sizes < 0) | (places % index.dtype.itemsize != 0)
    first = int(np.argmax(wrong)) + low if wrong.any() else None
    return np.concatenate([begins, ends[-1:]]), first
