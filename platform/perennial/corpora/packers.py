"""Packers: how the tokens of documents become rows of one length.

`concat` lays documents end to end, and a document that reaches the end of a row goes on in the
next one. `best-fit` puts every document that is not longer than a row whole into one row, by the
best-fit-decreasing algorithm for bin packing (Ding et al. 2024, arXiv 2404.10830), and fills what
is left of a row with padding.

Padding is the end-of-document repeated: inside a row an end right after an end is padding, and
nothing else is. So a reader knows it from the row alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from perennial.corpora.ingest.partition import make_file_salts, make_order_keys
from perennial.corpora.packing import RowGroups, rows_per_group

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.corpora.manifest import IngestSettings

BUFFER_TOKENS = 4 << 20
_LEAST_BUFFER_ROWS = 64
"""of very long rows a buffer holds more tokens, since a few rows cannot be filled well"""


class Spans(NamedTuple):
    """Stretches of documents in the rows of a shard, in the order of the rows; arrays `(spans,)`.

    document: number of the document among those that were added.
    before: tokens of the document before the span, in other rows or in none.
    row, start: row of the shard, and the span's first token in it.
    tokens: length of the span.
    """

    document: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]

    def take(self, chosen: Any) -> Spans:
        """Return some of the spans, by their numbers or a mask."""
        return Spans(*(column[chosen] for column in self))


class Packer(Protocol):
    """Packer of the documents of one shard, in their order.

    Tokens added = tokens in rows without padding + `remainder`.
    """

    padding: int
    """tokens of padding in the rows so far"""
    remainder: int
    """tokens that no row holds"""
    cut_documents: int
    """documents that do not lie whole in one row"""

    def add(self, ids: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """Add documents; yield groups of rows `(rows, sequence)`, each valid until the next one.

        Args:
            ids: of whole documents `(tokens,)`, an end of document after every one; or none.
        """

    def finish(self) -> Iterator[npt.NDArray[Any]]:
        """Yield the last groups of rows; the counts are complete then."""

    def list_spans(self) -> Spans:
        """Return where the documents lie, once the packer has finished."""


def make_packer(settings: IngestSettings, shard: str, dtype: np.dtype[Any], end: int) -> Packer:
    """Return the packer of one shard.

    Args:
        settings: of the ingest.
        shard: the shard's file, which decides the order of its rows besides the seed.
        dtype: of a stored token.
        end: the id that ends every document.
    """
    groups = RowGroups(
        settings.sequence_length, rows_per_group(settings.sequence_length, dtype.itemsize), dtype
    )
    if settings.packing == "concat":
        return ConcatPacker(groups, end)
    salt = make_file_salts([shard], settings.seed)
    return BestFitPacker(groups, end, salt)


class ConcatPacker:
    """Packer that lays documents end to end, without padding."""

    def __init__(self, groups: RowGroups, end: int) -> None:
        """Prepare an empty packer.

        Args:
            groups: takes the rows.
            end: the id that ends every document.
        """
        self._groups, self._end = groups, end
        self._taken = 0
        self._starts = [np.empty(0, dtype=np.int64)]
        self.padding = self.remainder = self.cut_documents = 0

    def add(self, ids: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """Add whole documents; yield the groups of rows that they fill."""
        if not len(ids):  # of a batch of which nothing is left
            return
        ends = self._taken + np.flatnonzero(ids == self._end)
        starts = np.append(self._taken, ends[:-1] + 1)
        self._starts.append(starts)
        length = self._groups.length
        self.cut_documents += int((starts // length != ends // length).sum())
        self._taken += len(ids)
        yield from self._groups.add(ids)

    def finish(self) -> Iterator[npt.NDArray[Any]]:
        """Yield the last rows."""
        rest, self.remainder = self._groups.finish()
        if len(rest):
            yield rest

    def list_spans(self) -> Spans:
        """Return where the documents lie; what no row holds has no span."""
        length, starts = self._groups.length, np.concatenate(self._starts)
        ends = np.append(starts[1:], self._taken)[: len(starts)]
        first = starts // length
        document, number = _repeat((ends - 1) // length - first + 1)
        row = first[document] + number
        begin = np.maximum(starts[document], row * length)
        tokens = np.minimum(ends[document], (row + 1) * length) - begin
        spans = Spans(document, begin - starts[document], row, begin - row * length, tokens)
        return spans.take(row < self._taken // length)


class BestFitPacker:
    """Packer that cuts no document that fits a row.

    Documents are held until they fill a buffer, and are packed then. The pieces of a row stay in
    the order of their documents, and the rows of a buffer are shuffled: the algorithm makes the
    fullest rows first.

    Of a document longer than a row full rows are cut off, and its rest is packed like a document.
    A rest that is an end alone would look like padding behind another document, so no row holds
    it; nor the end of a document without a token.
    """

    def __init__(self, groups: RowGroups, end: int, salt: npt.NDArray[np.uint64]) -> None:
        """Prepare an empty packer.

        Args:
            groups: takes the rows.
            end: the id that ends every document.
            salt: 64 bits `(1,)` that decide the order of the rows.
        """
        self._groups, self._end, self._salt = groups, end, salt
        self._held: list[npt.NDArray[Any]] = []
        self._held_tokens = self._rows = self._documents = 0
        self._spans: list[Spans] = []
        self._buffer = max(BUFFER_TOKENS, _LEAST_BUFFER_ROWS * groups.length)
        self.padding = self.remainder = self.cut_documents = 0

    def add(self, ids: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """Add whole documents; yield groups of rows once a buffer is full."""
        self._held.append(ids)
        self._held_tokens += len(ids)
        if self._held_tokens >= self._buffer:
            yield from self._pack()

    def finish(self) -> Iterator[npt.NDArray[Any]]:
        """Pack what is held, and yield the last groups of rows."""
        if self._held_tokens:
            yield from self._pack()
        rest, _ = self._groups.finish()
        if len(rest):
            yield rest

    def _pack(self) -> Iterator[npt.NDArray[Any]]:
        ids = np.concatenate(self._held)
        self._held, self._held_tokens = [], 0
        length = self._groups.length
        ends = np.flatnonzero(ids == self._end) + 1
        sizes = np.diff(ends, prepend=0)
        self.cut_documents += int((sizes > length).sum())
        document, number = _repeat(-(-sizes // length))
        before = number * length
        starts = (ends - sizes)[document] + before
        tokens = np.minimum(sizes[document] - before, length)
        alone = (tokens == 1) & (ids[starts] == self._end)
        self.remainder += int(alone.sum())
        starts, tokens = starts[~alone], tokens[~alone]
        rows, count = assign_rows(tokens, length)
        first = self._rows
        rows = self._shuffled(count)[rows]
        places = _places(rows, tokens, length)
        document = self._documents + document[~alone]
        spans = Spans(document, before[~alone], first + rows, places - rows * length, tokens)
        self._spans.append(spans)
        self._documents += len(sizes)
        filled = np.full(count * length, self._end, dtype=ids.dtype)
        copies = zip(starts.tolist(), places.tolist(), tokens.tolist(), strict=True)
        for source, target, size in copies:
            filled[target : target + size] = ids[source : source + size]
        self.padding += count * length - int(tokens.sum())
        yield from self._groups.add(filled)

    def list_spans(self) -> Spans:
        """Return where the documents lie; what no row holds has no span."""
        none = Spans(*(np.empty(0, dtype=np.int64) for _ in Spans._fields))
        spans = Spans(*map(np.concatenate, zip(none, *self._spans, strict=True)))
        return spans.take(np.lexsort((spans.start, spans.row)))

    def _shuffled(self, count: int) -> npt.NDArray[np.int64]:
        """Return the places of a buffer's rows among each other, and count them."""
        numbers = np.arange(self._rows, self._rows + count)
        self._rows += count
        places = np.empty(count, dtype=np.int64)
        places[np.argsort(make_order_keys(self._salt, numbers), kind="stable")] = np.arange(count)
        return places


def _repeat(pieces: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, for every piece of every document, the document's number and the piece's in it."""
    document = np.repeat(np.arange(len(pieces)), pieces)
    return document, np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)


def _places(
    rows: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], length: int
) -> npt.NDArray[np.int64]:
    """Return where every piece begins among the tokens of all rows, in their order in each row."""
    order = np.argsort(rows, kind="stable")
    before = np.cumsum(sizes[order]) - sizes[order]
    first = np.searchsorted(rows[order], rows[order])
    places = np.empty(len(rows), dtype=np.int64)
    places[order] = rows[order] * length + before - before[first]
    return places


def assign_rows(sizes: npt.NDArray[np.int64], length: int) -> tuple[npt.NDArray[np.int64], int]:
    """Return the row of every piece by best-fit-decreasing, and the number of rows.

    From the longest on, every piece goes into the row with the least space that is enough for it,
    or else begins a row.

    Args:
        sizes: tokens of every piece `(pieces,)`, each from 1 to `length`.
        length: tokens of a row.
    """
    order = np.argsort(-sizes, kind="stable")
    rows = np.empty(len(sizes), dtype=np.int64)
    by_space: defaultdict[int, list[int]] = defaultdict(list)
    spaces = 0  # bit n says whether a row has n tokens left; the lowest bit is found at once
    count = 0
    for piece, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        enough = spaces >> size
        if enough:
            space = size + (enough & -enough).bit_length() - 1
            row = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, row, count = length, count, count + 1
        rows[piece] = row
        if space > size:
            by_space[space - size].append(row)
            spaces |= 1 << (space - size)
    return rows, count
