"""Near duplicates of held-out documents: a cheap filter for every document, then MinHash.

The filter works on the token ids, which the ingest computes anyway; a document in an unusual
spelling is spelled as usual and encoded again for it (`comparing.respell`). An eighth of all words'
tokens are anchors (spaces and punctuation never are, and case is ignored); runs of 3 anchors give
12 minima, which are compared in 6 bands of 2 (locality-sensitive hashing). For pairs whose runs are
0.8 similar it misses one in 400. Documents that share a band with a held-out document are then
compared by the MinHash of all their runs of 5 words.

Text that many documents share, such as a licence, makes bands that many share. Where a document
shares bands with more than 32 held-out documents, those of a band are left out where what it shares
with all of them together does not suffice (`shared_text`), which is so for most documents of such a
corpus. With the others it is compared where they are most alike by a sketch of the runs of anchors.
Of a band, up to 1,024 are looked at.

The index is written once, after the held-out documents are known. A gather task holds about 170
bytes of it per held-out document (1% of a corpus of 10^9 documents: 1.7 GB), reads the 512 bytes of
a MinHash when it needs one, and 2 kB for every document of a band that many share.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from perennial.corpora.byte_bpe import byte_alphabet
from perennial.corpora.comparing import respell, split_words
from perennial.corpora.encoders import split_documents
from perennial.corpora.ingest.partition import splitmix64
from perennial.corpora.ingest.shared_text import (
    RUN_WORDS,
    SharedTextIndex,
    WordRuns,
    read_entries,
    sample_runs,
    write_runs,
)
from perennial.corpora.special_tokens import HoldsSpecialToken

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from perennial.corpora.encoders import Encoder
    from perennial.corpora.ingest.documents import StagedDocuments
    from perennial.corpora.manifest import InputFile
    from perennial.corpora.tokenizer import RunTokenizer
    from perennial.store import Store

_RUN = 3  # tokens in a run that the filter compares
_BANDS, _ROWS = 6, 2
_PERMUTATIONS = 128
_ODD = splitmix64(np.arange(1, RUN_WORDS + 2 * _PERMUTATIONS + 1, dtype=np.uint64)) | np.uint64(1)
_ADDENDS, _FACTORS, _PLACES = np.split(_ODD, [_PERMUTATIONS, 2 * _PERMUTATIONS])
_MINHASH = np.dtype(("<u4", (_PERMUTATIONS,)))
_ANCHORS = np.uint64(1 << 61)  # an eighth of all classes of tokens
_SHORT = 64  # tokens of a document below which all words' tokens are anchors
_COMPARED = 32  # held-out documents, at most, that one document is compared with
_RANKED = 1024  # held-out documents of one band, at most, that are ranked by their sketches
_BUCKETS = 256  # large ones that are kept, 70 kB each
_SKETCH = 64  # minima in a sketch, a byte of each
# Two sketches say this much less than the documents' similarity in one of a thousand pairs.
_SKETCH_ERROR = 0.25
_SHINGLES_AT_ONCE = 4096
_NOTHING, _END = 0, 1  # classes of tokens
_PART = "\0"  # before the bytes of a token that is a part of a character
_ENTRY = np.dtype(
    [
        ("file", "<i4"),
        ("offset", "<i8"),
        ("keys", "<u8", (_BANDS,)),
        ("sketch", "u1", (_SKETCH,)),
        ("runs", "<u4"),
    ]
)


class Signatures(NamedTuple):
    """Signatures of documents, which the filter compares."""

    keys: npt.NDArray[np.uint64]
    """bands `(documents, bands)`; 0 for a document that is too short"""
    runs: npt.NDArray[np.uint64]
    """hashes of the runs of anchors of all documents `(runs,)`"""
    bounds: npt.NDArray[np.int64]
    """where the runs of every document begin, and the end `(documents + 1,)`"""

    def sketch(self, row: int) -> npt.NDArray[np.uint8]:
        """Return a byte `(minima,)` of each of the sketch's minima over a document's runs.

        The share of equal bytes in two sketches estimates the similarity of their sets of runs.
        """
        runs = self.runs[self.bounds[row] : self.bounds[row + 1]]
        if not len(runs):
            return np.zeros(_SKETCH, dtype=np.uint8)
        # The low bits of a minimum are as good as random, other than its high ones.
        lowest: npt.NDArray[np.uint64] = np.multiply.outer(_FACTORS[:_SKETCH], runs).min(axis=1)
        return lowest.astype(np.uint8)


class BandHasher:
    """Filter for near duplicates: hashes documents' token ids into bands.

    Args:
        tokenizer: the run's tokenizer.
        encoder: its encoder.
    """

    def __init__(self, tokenizer: RunTokenizer, encoder: Encoder) -> None:
        self._end, self._encoder = tokenizer.end_of_document, encoder
        self._classes, parts = _token_classes(tokenizer.json, self._end)
        # A part of a character says little: in a script that the tokenizer knows by its bytes, an
        # eighth of them would be a few bytes that every document repeats.
        self._anchors = (splitmix64(self._classes.astype(np.uint64)) < _ANCHORS) | parts
        self._anchors[self._classes == _NOTHING] = False
        self._anchors[self._end] = True
        numbers = np.arange(1, _RUN + _BANDS * _ROWS + 1, dtype=np.uint64)
        self._odd = splitmix64(numbers) | np.uint64(1)

    def hash_documents(self, texts: Sequence[memoryview], ids: npt.NDArray[Any]) -> Signatures:
        """Return the signatures of documents.

        Args:
            texts: the documents' texts.
            ids: their token ids `(tokens,)`, an end-of-document after every one.
        """
        classes = self._select(self._respell(texts, ids))
        lengths = np.diff(np.flatnonzero(classes == _END), prepend=-1)
        keys = np.zeros((len(lengths), _BANDS), dtype=np.uint64)
        count = max(0, len(classes) - _RUN + 1)
        runs = np.zeros(count, dtype=np.uint64)
        inside = np.ones(count, dtype=bool)
        # A run is a sum of its classes times odd factors, so that the order of tokens matters; runs
        # over the end of a document are left out.
        for place in range(_RUN):
            part = classes[place : place + count]
            runs += part * self._odd[place]
            inside &= part != _END
        runs, documents = splitmix64(runs[inside]), np.repeat(np.arange(len(lengths)), lengths)
        documents = documents[:count][inside]
        bounds = np.searchsorted(documents, np.arange(len(lengths) + 1))
        some, first = np.unique(documents, return_index=True)
        if not len(some):
            return Signatures(keys, runs, bounds)
        for band in range(_BANDS):
            key = np.full(len(some), band + 1, dtype=np.uint64)
            for row in range(_ROWS):
                permuted = runs * self._odd[_RUN + band * _ROWS + row]
                key = splitmix64(key + np.minimum.reduceat(permuted, first))
            keys[some, band] = key
        return Signatures(keys, runs, bounds)

    def _respell(self, texts: Sequence[memoryview], ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the ids that the documents have when all are spelled as usual."""
        others = respell(texts)
        if not others:
            return ids
        parts = split_documents(ids, self._end)
        try:
            encoded = self._encoder.encode_documents(list(others.values()))
        except HoldsSpecialToken as held:
            # Those stay as they are spelled; of the others there are ids.
            rows = [row for place, row in enumerate(others) if place not in held.tokens]
            others = {row: others[row] for row in rows}
            encoded = self._encoder.encode_documents(list(others.values()))
        for row, part in zip(others, split_documents(encoded, self._end), strict=True):
            parts[row] = part
        return np.concatenate(parts)

    def _select(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
        """Return the classes of the anchors and of the ends of documents."""
        # `take` and `compress` cost a half and a fifth of what indices and masks in brackets do.
        picked = self._anchors.take(ids)
        lengths = np.diff(np.flatnonzero(ids == self._end), prepend=-1)
        if (lengths < _SHORT).any():
            picked |= np.repeat(lengths < _SHORT, lengths) & (self._classes[ids] != _NOTHING)
        return self._classes.take(ids.compress(picked))


@lru_cache(maxsize=2)
def _token_classes(
    tokenizer_json: str, end: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Return what a token stands for, by its id.

    Returns:
        32 bits that stand for its letters and digits, whatever their case, and whether it is a part
        of a character.
    """
    from tokenizers import Tokenizer

    alphabet = byte_alphabet() if '"ByteLevel"' in tokenizer_json else {}
    vocabulary: dict[str, int] = Tokenizer.from_str(tokenizer_json).get_vocab(True)
    classes = np.full(max(vocabulary.values()) + 1, _NOTHING, dtype=np.uint32)
    parts = np.zeros(len(classes), dtype=bool)
    for token, index in vocabulary.items():
        letters = _letters(token, alphabet)
        if letters:
            classes[index] = max(_END + 1, zlib.crc32(letters.encode()))
            parts[index] = letters.startswith(_PART)
    classes[end] = _END
    return classes, parts


def _letters(token: str, alphabet: dict[str, int]) -> str:
    if alphabet and all(c in alphabet for c in token):
        data = bytes(alphabet[c] for c in token)
        try:
            token = data.decode()
        except UnicodeDecodeError:
            return _PART + data.hex()
    return "".join(c for c in token.casefold() if c.isalnum())


def compute_minhash(
    text: bytes | memoryview, permutations: int = _PERMUTATIONS
) -> npt.NDArray[np.uint32] | None:
    """Return the MinHash `(permutations,)` of a text's runs of 5 words, in the form of `comparing`.

    The share of equal numbers in two of them estimates the Jaccard similarity of their sets of
    runs (Broder 1997), with a standard error of at most 0.045 for 128 permutations. None for a text
    of fewer words.
    """
    words = split_words(text)
    count = len(words) - RUN_WORDS + 1
    if count < 1:
        return None
    numbers = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    runs = np.zeros(count, dtype=np.uint64)
    for place, factor in enumerate(_PLACES):
        runs += numbers[place : place + count] * factor
    runs = splitmix64(runs)
    factors, addends = _FACTORS[:permutations], _ADDENDS[:permutations]
    lowest = np.full(permutations, ~np.uint64(0))
    for start in range(0, count, _SHINGLES_AT_ONCE):
        permuted = runs[start : start + _SHINGLES_AT_ONCE, None] * factors + addends
        np.minimum(lowest, permuted.min(axis=0), out=lowest)
    return (lowest >> np.uint64(32)).astype("<u4")


def write_index(
    staging: Store, part: int, documents: StagedDocuments, signatures: Iterable[Signatures]
) -> None:
    """Write the index of a part of the held-out documents: their signatures and MinHashes.

    Args:
        staging: the store of staged files.
        part: the number of the part.
        documents: the documents.
        signatures: those of the documents, in parts.
    """
    entries = np.empty(len(documents), dtype=_ENTRY)
    entries["file"], entries["offset"] = documents.file, documents.offset
    end = 0
    for some in signatures:
        start, end = end, end + len(some.keys)
        entries["keys"][start:end] = some.keys
        entries["sketch"][start:end] = [some.sketch(row) for row in range(end - start)]
    entries["runs"] = write_runs(staging, _runs_key(part), documents)
    with staging.open(_minhash_key(part), "wb") as stream:
        for text in documents.texts():
            minhash = compute_minhash(text)
            # Entries have one size, so that one of them can be read by its number.
            stream.write(bytes(_MINHASH.itemsize) if minhash is None else minhash.tobytes())
    staging.write(_entries_key(part), entries.tobytes())


class NearDuplicateIndex:
    """Search in the index of all held-out documents.

    partly_compared: the documents, so far, that are near duplicates of none of those that they were
        compared with, and share bands with others.
    """

    def __init__(
        self, staging: Store, parts: int, inputs: tuple[InputFile, ...], similarity: float
    ) -> None:
        read = [np.frombuffer(staging.read(_entries_key(p)), dtype=_ENTRY) for p in range(parts)]
        self._staging, self._inputs, self._similarity = staging, inputs, similarity
        self._bounds = np.cumsum([0, *map(len, read)])
        entries = np.concatenate(read)
        self._places = entries[["file", "offset"]].copy()
        self._sketches = entries["sketch"].copy()
        files, sizes = [*map(_runs_key, range(parts))], entries["runs"].copy()
        self._shared = SharedTextIndex(staging, files, self._bounds, sizes, similarity)
        keys = entries["keys"].ravel()
        order = np.argsort(keys, kind="stable")
        self._keys, self._held = keys[order], (order // _BANDS).astype(np.uint32)
        self.partly_compared = 0
        # Documents with the same boilerplate share the same bands.
        self._buckets: dict[int, tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]] = {}

    def search(self, documents: StagedDocuments, signatures: Signatures) -> dict[int, str]:
        """Return, by row, which documents are near duplicates, and of which held-out document.

        Args:
            documents: the documents to look for.
            signatures: those of the documents.
        """
        keys = signatures.keys
        if not len(self._keys):
            return {}
        slots = np.searchsorted(self._keys, keys)
        known = self._keys[np.minimum(slots, len(self._keys) - 1)] == keys
        rows, bands = np.nonzero(known & (keys != 0))
        starts = slots[rows, bands]
        stops = np.searchsorted(self._keys, keys[rows, bands], side="right")
        if not len(rows):
            return {}
        chosen, numbers = np.unique(rows, return_inverse=True)
        runs = sample_runs(documents.take(chosen))
        left = self._keep_bands(runs, numbers, starts, stops)
        cut = {*rows[~left & (stops - starts > _RANKED)].tolist()}
        rows, starts, stops = rows[left], starts[left], stops[left]
        few = np.bincount(rows, stops - starts, len(documents))[rows] <= _COMPARED
        pairs = [self._list_members(rows[few], starts[few], stops[few])]
        rows, starts, stops = rows[~few], starts[~few], stops[~few]
        bounds = [*np.flatnonzero(np.diff(rows, prepend=-1)).tolist(), len(rows)]
        for begin, end in pairwise(bounds):
            row, its = int(rows[begin]), slice(begin, end)
            near, is_cut = self._rank(starts[its], stops[its], signatures.sketch(row))
            cut |= {row} if is_cut else set()
            pairs.append((np.full(len(near), row), near))
        rows, near = map(np.concatenate, zip(*pairs, strict=True))
        unlike = self._shared.find_unlike_pairs(runs, np.searchsorted(chosen, rows), near)
        result = self._compare(documents, rows[~unlike], near[~unlike])
        self.partly_compared += len(cut - result.keys())
        return result

    def _list_members(
        self,
        rows: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        stops: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
        """Return pairs of documents and held-out ones that share a band.

        They are in the order of the documents; of each of them those with the most bands are first.

        Args:
            rows: a row of the documents for every band.
            starts: where, in the sorted keys, those that are equal to the band begin.
            stops: where they end.
        """
        sizes = stops - starts
        members = np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        pairs = np.repeat(rows, sizes) << 32 | self._held[members]
        pairs, shared = np.unique(pairs, return_counts=True)
        rows, near = pairs >> 32, (pairs & 0xFFFFFFFF).astype(np.uint32)
        # The last key makes the choice independent of the order of counting.
        order = np.lexsort((near, -shared, rows))
        return rows[order], near[order]

    def _keep_bands(
        self,
        runs: WordRuns,
        rows: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        stops: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.bool_]:
        """Return which pairs of a document and a band `(pairs,)` may have a near duplicate in it.

        Args:
            runs: of the documents.
            rows: the document of every pair.
            starts: where, in the sorted keys, those that are equal to its band begin.
            stops: where they end.
        """
        sizes = stops - starts
        kept = np.ones(len(rows), dtype=bool)
        many = np.flatnonzero((np.bincount(rows, sizes)[rows] > _COMPARED) & (sizes > _COMPARED))
        if len(many):
            ends = dict(zip(starts[many].tolist(), stops[many].tolist(), strict=True))
            kept[many] = ~self._shared.find_unlike_bands(
                runs,
                rows[many],
                starts[many],
                lambda start: self._held[start : min(ends[start], start + _RANKED)],
            )
        return kept

    def _rank(
        self,
        starts: npt.NDArray[np.int64],
        stops: npt.NDArray[np.int64],
        sketch: npt.NDArray[np.uint8],
    ) -> tuple[npt.NDArray[np.uint32], bool]:
        """Return the held-out documents to compare one with, best first, and if others share bands.

        Args:
            starts: where, in the sorted keys, those that are equal to each shared band begin.
            stops: where they end.
            sketch: the document's sketch.
        """
        mine, least = sketch[:, None], (self._similarity - _SKETCH_ERROR) * _SKETCH
        ranked = []
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            held, sketches = self._read_bucket(start, stop)
            equal = (sketches == mine).sum(axis=0, dtype=np.uint8)
            some = np.flatnonzero(equal >= least)
            # One number sorts by the sketch, then by the document.
            ranked.append((_SKETCH - equal[some].astype(np.int64)) << 32 | held[some])
        order = np.unique(np.concatenate(ranked))
        near = (order[:_COMPARED] & 0xFFFFFFFF).astype(np.uint32)
        left_out = order[_COMPARED : _COMPARED + 1] >> 32
        is_cut = (left_out <= (1 - self._similarity) * _SKETCH).any()
        return near, bool(is_cut or (stops - starts > _RANKED).any())

    def _read_bucket(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        """Return the held-out documents of a band, and their sketches `(minima, documents)`.

        Args:
            start: where, in the sorted keys, those of the band begin.
            stop: where they end; those after the first 1,024 are left out.
        """
        bucket = self._buckets.get(start)
        if bucket is None:
            held = self._held[start : min(stop, start + _RANKED)]
            bucket = held, np.ascontiguousarray(self._sketches[held].T)
            if len(held) > _COMPARED:
                if len(self._buckets) == _BUCKETS:
                    self._buckets.clear()
                self._buckets[start] = bucket
        return bucket

    def _compare(
        self,
        documents: StagedDocuments,
        rows: npt.NDArray[np.int64],
        held: npt.NDArray[np.uint32],
    ) -> dict[int, str]:
        """Return which documents are near duplicates of a held-out one of their pairs, by row.

        Args:
            documents: the documents.
            rows: the document of every pair, those of one in succession.
            held: the held-out document of every pair, by number.
        """
        result: dict[int, str] = {}
        if not len(rows):
            return result
        wanted = np.unique(held)
        minhashes = self._read_minhashes(wanted)
        bounds = [*np.flatnonzero(np.diff(rows, prepend=-1)).tolist(), len(rows)]
        texts = documents.take(rows[bounds[:-1]]).texts()
        for (begin, end), text in zip(pairwise(bounds), texts, strict=True):
            mine = compute_minhash(text)
            if mine is None:
                continue
            near = held[begin:end]
            equal = (minhashes[np.searchsorted(wanted, near)] == mine).mean(axis=1)
            best = int(np.argmax(equal >= self._similarity))
            if equal[best] >= self._similarity:
                file, offset = self._places[near[best]].tolist()
                name = self._inputs[file].name
                result[int(rows[begin])] = f"{equal[best]:.2f} like {name} at {offset}"
        return result

    def _read_minhashes(self, wanted: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Return the MinHashes `(documents, permutations)` of held-out documents.

        Args:
            wanted: their numbers, in order.
        """
        keys = [*map(_minhash_key, range(len(self._bounds) - 1))]
        return read_entries(self._staging, keys, self._bounds, wanted, _MINHASH)


def _entries_key(part: int) -> str:
    return f"index/{part:05d}.bands"


def _minhash_key(part: int) -> str:
    return f"index/{part:05d}.minhash"


def _runs_key(part: int) -> str:
    return f"index/{part:05d}.runs"
