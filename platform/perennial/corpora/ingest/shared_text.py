"""Bound of how similar a document can be to any of many that share text with it.

Text that many documents share, such as a licence, puts a document into the bands of many held-out
ones. Those of a band have a table of all their runs of 5 words: no document can be more similar to
one of them than what it shares with the table, and their numbers of runs, allow. This takes about a
tenth of what comparing it with a few of them would.

The runs of up to 256 words are all looked up. Of more, about 256 are, those of the lowest
hashes; the lowest 512 of a held-out document are in the table. Words of more than 8 bytes count as
equal where their first 8 bytes and their lengths are. This, and what else a table has by chance,
makes the bound higher, never lower.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from perennial.corpora.comparing import split_words
from perennial.corpora.ingest.partition import splitmix64

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from perennial.corpora.ingest.documents import StagedDocuments
    from perennial.store import Store

RUN_WORDS = 5
"""words in a run that similarity is measured by"""
_SAMPLED = 256  # runs of a document that are looked up, roughly
_LISTED = 512  # runs of a held-out document that are in a table
_LIST = np.dtype(("<u4", (_LISTED,)))
_HASH_BITS = 44  # the others number the documents of a batch
_TABLE_BITS, _PAIR_BITS = 22, 13
_PAIRS_AT_ONCE = 1024
_TABLES = 32  # that are kept, 512 kB each
_ASKED = 32  # members of a band per document that asks for their table, before it is made
# A MinHash says this much more than the similarity in fewer than one of a thousand pairs.
_ERROR = 0.14
_READ_THROUGH = 1 << 16  # bytes between two entries, which cost less to read than another request
_WORD_BYTES = bytes(
    byte if byte >= 0x80 else ord(chr(byte).lower()) if chr(byte).isalnum() or byte == 0x5F else 0
    for byte in range(256)
)
"""in lower case, the bytes that words are made of; 0 for others"""
_HEADS = np.array([(1 << 8 * size) - 1 for size in range(9)], dtype=np.uint64)
_BITS = np.left_shift(1, np.arange(8)).astype(np.uint8)
_ODD = splitmix64(np.arange(1, RUN_WORDS + 3, dtype=np.uint64)) | np.uint64(1)
_PLACES, (_HEAD, _SIZE) = _ODD[:RUN_WORDS], _ODD[RUN_WORDS:]


class WordRuns(NamedTuple):
    """Hashes of documents' runs of words.

    values: of all documents `(runs,)`, in each of them distinct and in order.
    bounds: where those of every document begin, and the end `(documents + 1,)`.
    sizes: the distinct runs of every document `(documents,)`, those left out included, roughly.
    """

    values: npt.NDArray[np.uint32]
    bounds: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


def sample_runs(documents: StagedDocuments) -> WordRuns:
    """Return hashes of the runs of documents, as the index looks for them."""
    return hash_runs(documents.texts(), _SAMPLED)


def hash_runs(texts: Sequence[bytes | memoryview], most: int | None) -> WordRuns:
    """Return hashes of the runs of 5 words of texts, in the form of `comparing`.

    Args:
        texts: UTF-8.
        most: runs of a document, roughly, those of the lowest hashes; None for all.
    """
    forms = [*map(_form, texts)]
    joined = b" ".join([b"", *forms, bytes(16)]).translate(_WORD_BYTES)
    in_word = np.frombuffer(joined, dtype=np.uint8) != 0
    edges = np.flatnonzero(in_word[1:] != in_word[:-1]) + 1
    starts = edges[::2].copy()  # what follows is faster on memory without gaps
    words = _hash_words(joined, starts, (edges[1::2] - starts).view(np.uint64))
    offsets = np.cumsum([1, *(len(form) + 1 for form in forms)])
    counts = np.diff(np.searchsorted(starts, offsets))
    documents = np.repeat(np.arange(len(texts), dtype=np.uint64), counts)
    total = max(0, len(words) - RUN_WORDS + 1)
    runs = np.zeros(total, dtype=np.uint64)
    for place, factor in enumerate(_PLACES):
        runs += words[place : place + total] * factor
    runs = splitmix64(runs) >> np.uint64(64 - _HASH_BITS)
    chosen = documents[:total] == documents[RUN_WORDS - 1 :]  # not over the end of a document
    if most is not None:
        rates = np.minimum(1, most / np.maximum(1, counts))
        limits = (rates * (1 << _HASH_BITS)).astype(np.uint64)
        chosen &= runs < np.repeat(limits, counts)[:total]
    # Sorted by document and hash.
    keys = (documents[:total] << np.uint64(_HASH_BITS) | runs).compress(chosen)
    keys.sort()
    borders = np.arange(len(texts), dtype=np.uint64) << np.uint64(_HASH_BITS)
    with_repeats = np.diff(np.searchsorted(keys, borders), append=len(keys))
    keys = keys.compress(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
    bounds = np.append(np.searchsorted(keys, borders), len(keys))
    sizes = np.maximum(0, counts - RUN_WORDS + 1) * np.diff(bounds) // np.maximum(1, with_repeats)
    return WordRuns((keys >> np.uint64(_HASH_BITS - 32)).astype(np.uint32), bounds, sizes)


def _form(text: bytes | memoryview) -> bytes:
    """Return a text with the words that `split_words` finds, as runs of word bytes."""
    data = bytes(text)
    return data if data.isascii() else b" ".join(split_words(data))


def _hash_words(
    joined: bytes, starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Return a hash `(words,)` of the first 8 bytes and the length of words.

    Args:
        joined: text, with 8 bytes behind the last word.
        starts: where words begin `(words,)`.
        sizes: their lengths `(words,)`.
    """
    aligned = np.frombuffer(joined, dtype="<u8", count=len(joined) // 8)
    shifts = (starts.view(np.uint64) & np.uint64(7)) << np.uint64(3)
    places = starts >> 3
    words: npt.NDArray[np.uint64] = aligned.take(places) >> shifts
    words |= (aligned.take(places + 1) << np.uint64(1)) << (np.uint64(63) - shifts)
    words &= _HEADS.take(sizes.view(np.int64), mode="clip")
    words *= _HEAD
    words += sizes * _SIZE
    words ^= words >> np.uint64(32)
    return words


def write_runs(staging: Store, key: str, documents: StagedDocuments) -> npt.NDArray[np.int64]:
    """Write the runs of held-out documents, 512 of each; return how many there are `(documents,)`.

    Args:
        staging: the store of staged files.
        key: of the file.
        documents: the documents.
    """
    sizes = [np.empty(0, dtype=np.int64)]
    with staging.open(key, "wb") as stream:
        for batch in documents.batches():
            runs = hash_runs(batch.texts(), None)
            listed = np.zeros((len(batch), _LISTED), dtype="<u4")
            places = np.arange(_LISTED)
            for row in range(len(batch)):
                own = runs.values[runs.bounds[row] : runs.bounds[row + 1]]
                if len(own):
                    listed[row] = own[np.minimum(places, len(own) - 1)]
            stream.write(listed.tobytes())
            sizes.append(runs.sizes)
    return np.concatenate(sizes)


class _BandTable(NamedTuple):
    bits: npt.NDArray[np.uint8]
    sizes: npt.NDArray[np.int64]
    """how many runs the documents of the table have `(members,)`, in order"""


class SharedTextIndex:
    """Index of the runs of held-out documents.

    Args:
        staging: the store of staged files.
        keys: of the files of the documents' runs.
        bounds: the numbers of the documents at which the files begin, and the end.
        sizes: how many runs every document has `(documents,)`.
        similarity: from which on documents are near duplicates.
    """

    def __init__(
        self,
        staging: Store,
        keys: Sequence[str],
        bounds: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.uint32],
        similarity: float,
    ) -> None:
        self._staging, self._keys, self._bounds, self._sizes = staging, keys, bounds, sizes
        self._least = similarity - _ERROR
        self._asked: Counter[int] = Counter()
        self._tables: dict[int, _BandTable] = {}

    def find_unlike_bands(
        self,
        runs: WordRuns,
        rows: npt.NDArray[np.int64],
        bands: npt.NDArray[np.int64],
        members: Callable[[int], npt.NDArray[np.uint32]],
    ) -> npt.NDArray[np.bool_]:
        """Return which documents are near duplicates of none of a band's documents.

        A band has no table, and says nothing, before a few documents have asked for it.

        Args:
            runs: of the documents, as `sample_runs` returns them.
            rows: the document of every pair `(pairs,)`.
            bands: the band of every pair `(pairs,)`.
            members: returns the held-out documents of a band, by number.
        """
        unlike = np.zeros(len(rows), dtype=bool)
        places, bits = _find_bits(runs.values, _TABLE_BITS)
        for band, asked in zip(*np.unique(bands, return_counts=True), strict=True):
            table = self._find_table(int(band), int(asked), members)
            if table is not None:
                pairs = np.flatnonzero(bands == band)
                shared = _count_set(table.bits.take(places) & bits, runs.bounds)
                bound = _bound_similarity(shared, runs, table.sizes)
                unlike[pairs] = bound[rows[pairs]] < self._least
        return unlike

    def find_unlike_pairs(
        self, runs: WordRuns, rows: npt.NDArray[np.int64], held: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.bool_]:
        """Return which pairs of documents are no near duplicates.

        Args:
            runs: of the documents, as `sample_runs` returns them.
            rows: the document of every pair `(pairs,)`.
            held: the held-out document of every pair, by number `(pairs,)`.
        """
        unlike = np.zeros(len(rows), dtype=bool)
        for start in range(0, len(rows), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            unlike[part] = self._bound_pairs(runs, rows[part], held[part]) < self._least
        return unlike

    def _bound_pairs(
        self, runs: WordRuns, rows: npt.NDArray[np.int64], held: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.float64]:
        """Return the highest similarity that the documents of every pair can have `(pairs,)`."""
        some, numbers = np.unique(held, return_inverse=True)
        firsts = np.arange(len(some), dtype=np.int64)[:, None] << _PAIR_BITS
        bits = _set_bits(self._read_runs(some), _PAIR_BITS, firsts)
        places, masks = _find_bits(runs.values, _PAIR_BITS)
        lengths = np.diff(runs.bounds)[rows]
        ends = np.cumsum(lengths)
        asked = np.arange(lengths.sum()) + np.repeat(runs.bounds[rows] - ends + lengths, lengths)
        where = places.take(asked) + np.repeat(numbers << (_PAIR_BITS - 3), lengths)
        shared = _count_set(bits.take(where) & masks.take(asked), np.append(0, ends))
        own, size = np.maximum(1, runs.sizes[rows]), np.maximum(1, self._sizes[held])
        most = np.minimum(shared / np.maximum(1, lengths) * own, size)
        return np.asarray(most / (own + size - most))

    def _find_table(
        self, band: int, asked: int, members: Callable[[int], npt.NDArray[np.uint32]]
    ) -> _BandTable | None:
        table = self._tables.get(band)
        if table is None:
            self._asked[band] += asked
            held = members(band)
            if self._asked[band] * _ASKED < len(held):
                return None
            if len(self._tables) == _TABLES:
                self._tables.clear()
                self._asked.clear()
            sizes = np.sort(self._sizes[held].astype(np.int64))
            bits = _set_bits(self._read_runs(np.sort(held)), _TABLE_BITS)
            table = self._tables[band] = _BandTable(bits, sizes[sizes > 0])
        return table

    def _read_runs(self, held: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        return read_entries(self._staging, self._keys, self._bounds, held, _LIST)


def _set_bits(
    values: npt.NDArray[np.uint32], bits: int, firsts: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.uint8]:
    """Return tables `(bytes,)` of `1 << bits` bits, one after the other, with those of runs set.

    Args:
        values: the runs.
        bits: of the runs that number the bits of a table.
        firsts: the bit at which the table of every run begins; None for one table.
    """
    places = values & np.uint32((1 << bits) - 1)
    flags = np.zeros((1 if firsts is None else len(firsts)) << bits, dtype=bool)
    flags[places if firsts is None else places + firsts] = True
    return np.packbits(flags, bitorder="little")


def _find_bits(
    values: npt.NDArray[np.uint32], bits: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return the byte of a table that stands for each run `(runs,)`, and the bit in it."""
    places = (values & np.uint32((1 << bits) - 1)).astype(np.int64)
    return places >> 3, _BITS.take(places & 7)


def _count_set(
    numbers: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return how many numbers of each section are not 0 `(sections,)`."""
    sums = np.zeros(len(numbers) + 1, dtype=np.int64)
    np.cumsum(numbers != 0, out=sums[1:])
    return np.diff(sums[bounds])


def _bound_similarity(
    shared: npt.NDArray[np.int64], runs: WordRuns, sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the highest Jaccard similarity `(documents,)` to any document of a table.

    Args:
        shared: how many of each document's runs the table has `(documents,)`.
        runs: of the documents.
        sizes: how many runs the documents of the table have, in order.
    """
    if not len(sizes):
        return np.zeros(len(shared))
    own = np.maximum(1, runs.sizes)
    most = shared / np.maximum(1, np.diff(runs.bounds)) * own
    # The most similar that a document can be is one with the shared runs and nothing else; of the
    # sizes that there are, the next larger or the next smaller one is best.
    place = np.searchsorted(sizes, most)
    larger = np.append(sizes, np.iinfo(np.int64).max)[place].astype(np.float64)
    smaller = np.append(0, sizes)[place]
    return np.maximum(most / (own + larger - most), smaller / own)


def read_entries(
    staging: Store,
    keys: Sequence[str],
    bounds: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.uint32],
    entry: np.dtype[np.void],
) -> npt.NDArray[np.uint32]:
    """Return the entries `(documents, numbers)` of documents in files of fixed-size entries.

    Args:
        staging: the store of staged files.
        keys: of the files.
        bounds: the numbers of the documents at which the files begin, and the end.
        wanted: numbers of documents, in order.
        entry: the type of an entry.
    """
    read, size = [], entry.itemsize
    parts = np.searchsorted(bounds, wanted, side="right") - 1
    for part in np.unique(parts).tolist():
        places = wanted[parts == part].astype(np.int64) - int(bounds[part])
        far = np.flatnonzero(np.diff(places) * size > _READ_THROUGH) + 1
        with staging.open(keys[part]) as stream:
            for group in np.split(places, far):
                first, last = int(group[0]), int(group[-1])
                stream.seek(size * first)
                data = stream.read(size * (last - first + 1))
                read.append(np.frombuffer(data, dtype=entry)[group - first])
    return np.concatenate(read)
