"""Ids one after the other in a file, as memory-mapped files of nanoGPT and OLMo hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.corpora.formats.base import TOO_LONG, UNREADABLE, FilePart, Record
from perennial.corpora.formats.token_ids import STORED, make_document

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.corpora.manifest import IngestSettings, TokenIds

_CHUNK_IDS = 1 << 19
_HEAD_IDS = 1 << 15
_LEAST_IDS = 64
"""fewer say nothing of the width of an id"""


@dataclass(frozen=True)
class IdStream:
    """The ids of a file: their type, the byte at which they begin, and their number."""

    dtype: np.dtype[Any]
    begin: int
    count: int

    def index_at(self, byte: int) -> int:
        """Return the number of the first id that does not begin before a byte of the file."""
        index = -((self.begin - byte) // self.dtype.itemsize)
        return min(max(0, index), self.count)


def read_headless(part: FilePart, settings: IngestSettings) -> Iterator[Record]:
    """Yield the documents of a file without a head, whose ids are of the declared type.

    Ids of twice as many bytes would be read as ids, each with a 0 behind it, and mostly as valid
    ones: such a file is set aside as a whole.

    Args:
        part: the open file, and the bytes of it to read.
        settings: declares the ids.
    """
    assert settings.tokens is not None
    dtype = settings.tokens.raw_type
    part.stream.seek(0)
    data = part.stream.read(_HEAD_IDS * dtype.itemsize)
    head = np.frombuffer(data, dtype=dtype, count=len(data) // dtype.itemsize)
    if len(head) >= _LEAST_IDS and head.any() and not head[1::2].any():
        if part.start == 0:
            detail = (
                f"every second id is 0, as where ids of {2 * dtype.itemsize} bytes are read as "
                f"{dtype}; declare the type that the file has as dtype"
            )
            yield Record(0, reason=UNREADABLE, detail=detail, lost_bytes=part.size_bytes)
        return
    yield from read_stream(part, IdStream(dtype, 0, part.size_bytes // dtype.itemsize), settings)


def read_stream(part: FilePart, ids: IdStream, settings: IngestSettings) -> Iterator[Record]:
    """Yield the documents that begin in a part of a file, each ended by the end-of-document id.

    An offset is the number of a document's first id in the file.

    Args:
        part: the open file, and the bytes of it to read.
        ids: where they are in it.
        settings: declares the ids.
    """
    assert settings.tokens is not None
    end = part.size_bytes if part.end is None else part.end
    first, last = ids.index_at(part.start if part.start else ids.begin), ids.index_at(end)
    yield from _Documents(part, ids, settings, settings.tokens).read(first, last)
    rest = part.size_bytes - ids.begin - ids.count * ids.dtype.itemsize
    if rest and end == part.size_bytes:
        detail = f"it ends inside an id of {ids.dtype.itemsize} bytes"
        yield Record(ids.count, reason=UNREADABLE, detail=detail, lost_bytes=rest, is_cut=True)


class _Documents:
    """Reader of documents; what is in memory is one of them, and a chunk."""

    def __init__(
        self, part: FilePart, ids: IdStream, settings: IngestSettings, tokens: TokenIds
    ) -> None:
        self._part, self._ids = part, ids
        self._settings, self._tokens = settings, tokens
        self._most = settings.max_document_bytes // STORED.itemsize
        self._kept: list[npt.NDArray[Any]] = []
        self._begin = 0
        self._size = 0

    def read(self, first: int, last: int) -> Iterator[Record]:
        """Yield the documents whose first ids are among [first, last)."""
        if first >= last:
            return
        # The document that holds the id before the part belongs to the part with that id.
        is_inside = first > 0
        self._begin = first
        for at, chunk in self._chunks(max(0, first - 1)):
            ends = np.flatnonzero(chunk == self._tokens.end_of_document)
            begin = 0
            for end in ends.tolist():
                if not is_inside:
                    self._keep(chunk[begin:end])
                    yield self._finish()
                is_inside, begin = False, end + 1
                self._begin = at + begin
                if self._begin >= last:
                    return
            if not is_inside:
                self._keep(chunk[begin:])
        if not is_inside and self._size:
            yield self._finish(is_ended=False)

    def _keep(self, ids: npt.NDArray[Any]) -> None:
        self._size += len(ids)
        if self._size <= self._most:
            self._kept.append(ids)
        else:
            self._kept = []

    def _finish(self, is_ended: bool = True) -> Record:
        kept, size, self._kept, self._size = self._kept, self._size, [], 0
        if size > self._most:
            detail = f"a document of {size} ids"
            if not is_ended:
                end = self._tokens.end_of_document
                detail += f" without the end of a document, id {end}; is this its id, and its type?"
            return Record(self._begin, reason=TOO_LONG, detail=detail)
        ids = np.concatenate([np.empty(0, dtype=self._ids.dtype), *kept])
        return make_document(self._begin, ids, None, self._settings, self._tokens)

    def _chunks(self, first: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        dtype, stream = self._ids.dtype, self._part.stream
        stream.seek(self._ids.begin + first * dtype.itemsize)
        while first < self._ids.count:
            wanted = min(_CHUNK_IDS, self._ids.count - first)
            data = stream.read(wanted * dtype.itemsize)
            chunk = np.frombuffer(data, dtype=dtype, count=len(data) // dtype.itemsize)
            if not len(chunk):
                return
            yield first, chunk
            first += len(chunk)
