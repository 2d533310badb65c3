"""Near duplicates of held-out documents: a cheap filter for every document, then MinHash.

The filter works on the token ids, which the ingest computes anyway. An eighth of all words' tokens
are anchors (spaces and punctuation never are, and case is ignored); runs of 3 anchors give 12
minima, which are compared in 6 bands of 2 (locality-sensitive hashing). For pairs whose runs are
0.8 similar it misses one in 400. It also misses a copy in capitals, whose tokens are others.
Documents that share a band with a held-out document are then compared by the MinHash of all their
runs of 5 words.

The index is written once, after the held-out documents are known. A gather task holds about 110
bytes of it per held-out document (1% of a corpus of 10^9 documents: 1.1 GB), and reads the 512
bytes of a MinHash when it needs one.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.corpora.byte_bpe import byte_alphabet
from perennial.corpora.ingest.partition import splitmix64

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from perennial.corpora.ingest.documents import StagedDocuments
    from perennial.corpora.manifest import InputFile
    from perennial.corpora.tokenizer import RunTokenizer
    from perennial.store import Store

WORDS = re.compile(r"\w+")
_WORDS = 5  # in a run that similarity is measured by
_RUN = 3  # tokens in a run that the filter compares
_BANDS, _ROWS = 6, 2
_PERMUTATIONS = 128
_ODD = splitmix64(np.arange(1, _WORDS + 2 * _PERMUTATIONS + 1, dtype=np.uint64)) | np.uint64(1)
_ADDENDS, _FACTORS, _PLACES = np.split(_ODD, [_PERMUTATIONS, 2 * _PERMUTATIONS])
_MINHASH_BYTES = 4 * _PERMUTATIONS
_ANCHORS = np.uint64(1 << 61)  # an eighth of all classes of tokens
_SHORT = 64  # tokens of a document below which all words' tokens are anchors
_COMPARED = 32  # held-out documents, at most, that one document is compared with
_SHINGLES_AT_ONCE = 4096
_NOTHING, _END = 0, 1  # classes of tokens
_ENTRY = np.dtype([("file", "<i4"), ("offset", "<i8"), ("keys", "<u8", (_BANDS,))])


class BandHasher:
    """Filter for near duplicates: hashes documents' token ids into bands."""

    def __init__(self, tokenizer: RunTokenizer) -> None:
        self._end = tokenizer.end_of_document
        self._classes = _token_classes(tokenizer.json, self._end)
        self._anchors = splitmix64(self._classes.astype(np.uint64)) < _ANCHORS
        self._anchors[self._classes == _NOTHING] = False
        self._anchors[self._end] = True
        numbers = np.arange(1, _RUN + _BANDS * _ROWS + 1, dtype=np.uint64)
        self._odd = splitmix64(numbers) | np.uint64(1)

    def hash_documents(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
        """Return the bands `(documents, bands)` of documents; 0 for one that is too short.

        Args:
            ids: token ids of the documents `(tokens,)`, an end-of-document after every one.
        """
        classes = self._select(ids)
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
        some, first = np.unique(documents[:count][inside], return_index=True)
        if not len(some):
            return keys
        for band in range(_BANDS):
            key = np.full(len(some), band + 1, dtype=np.uint64)
            for row in range(_ROWS):
                permuted = runs * self._odd[_RUN + band * _ROWS + row]
                key = splitmix64(key + np.minimum.reduceat(permuted, first))
            keys[some, band] = key
        return keys

    def _select(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
        """Return the classes of the anchors and of the ends of documents."""
        picked = self._anchors[ids]
        lengths = np.diff(np.flatnonzero(ids == self._end), prepend=-1)
        if (lengths < _SHORT).any():
            picked |= np.repeat(lengths < _SHORT, lengths) & (self._classes[ids] != _NOTHING)
        return np.asarray(self._classes[ids[picked]])


@lru_cache(maxsize=2)
def _token_classes(tokenizer_json: str, end: int) -> npt.NDArray[np.uint32]:
    """Return, by token id, 32 bits that stand for its letters and digits, whatever their case."""
    from tokenizers import Tokenizer

    alphabet = byte_alphabet() if '"ByteLevel"' in tokenizer_json else {}
    vocabulary: dict[str, int] = Tokenizer.from_str(tokenizer_json).get_vocab(True)
    classes = np.full(max(vocabulary.values()) + 1, _NOTHING, dtype=np.uint32)
    for token, index in vocabulary.items():
        letters = _letters(token, alphabet)
        if letters:
            classes[index] = max(_END + 1, zlib.crc32(letters.encode()))
    classes[end] = _END
    return classes


def _letters(token: str, alphabet: dict[str, int]) -> str:
    if alphabet and all(c in alphabet for c in token):
        data = bytes(alphabet[c] for c in token)
        try:
            token = data.decode()
        except UnicodeDecodeError:
            return data.hex()  # a part of a character's bytes
    return "".join(c for c in token.casefold() if c.isalnum())


def compute_minhash(text: bytes | memoryview) -> npt.NDArray[np.uint32] | None:
    """Return the MinHash `(permutations,)` of a text's runs of 5 words.

    Case and punctuation are ignored.

    The share of equal numbers in two of them estimates the Jaccard similarity of their sets of
    runs (Broder 1997), with a standard error of at most 0.045. None for a text of fewer words.
    """
    words = WORDS.findall(str(text, "utf-8").casefold())
    count = len(words) - _WORDS + 1
    if count < 1:
        return None
    numbers = np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64, len(words))
    runs = np.zeros(count, dtype=np.uint64)
    for place, factor in enumerate(_PLACES):
        runs += numbers[place : place + count] * factor
    runs = splitmix64(runs)
    lowest = np.full(_PERMUTATIONS, ~np.uint64(0))
    for start in range(0, count, _SHINGLES_AT_ONCE):
        permuted = runs[start : start + _SHINGLES_AT_ONCE, None] * _FACTORS + _ADDENDS
        np.minimum(lowest, permuted.min(axis=0), out=lowest)
    return (lowest >> np.uint64(32)).astype("<u4")


def write_index(staging: Store, part: int, documents: StagedDocuments, keys: Iterable[Any]) -> None:
    """Write the index of a part of the held-out documents: their bands and their MinHashes.

    Args:
        staging: the store of staged files.
        part: the number of the part.
        documents: the documents.
        keys: their bands, in arrays `(some documents, bands)`.
    """
    entries = np.empty(len(documents), dtype=_ENTRY)
    entries["file"], entries["offset"] = documents.file, documents.offset
    entries["keys"] = np.concatenate([np.empty((0, _BANDS), dtype=np.uint64), *keys])
    with staging.open(_minhash_key(part), "wb") as stream:
        for text in documents.texts():
            minhash = compute_minhash(text)
            # Entries have one size, so that one of them can be read by its number.
            stream.write(bytes(_MINHASH_BYTES) if minhash is None else minhash.tobytes())
    staging.write(_entries_key(part), entries.tobytes())


class NearDuplicateIndex:
    """Search in the index of all held-out documents."""

    def __init__(
        self, staging: Store, parts: int, inputs: tuple[InputFile, ...], similarity: float
    ) -> None:
        read = [np.frombuffer(staging.read(_entries_key(p)), dtype=_ENTRY) for p in range(parts)]
        self._staging, self._inputs, self._similarity = staging, inputs, similarity
        self._bounds = np.cumsum([0, *map(len, read)])
        entries = np.concatenate(read)
        self._places = entries[["file", "offset"]].copy()
        keys = entries["keys"].ravel()
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def search(self, documents: StagedDocuments, keys: npt.NDArray[np.uint64]) -> dict[int, str]:
        """Return, by row, which documents are near duplicates, and of which held-out document.

        Args:
            documents: the documents to look for.
            keys: their bands `(documents, bands)`.
        """
        result: dict[int, str] = {}
        if not len(self._keys):
            return result
        rows, bands = np.nonzero((self._keys[self._slots(keys)] == keys) & (keys != 0))
        for row in np.unique(rows).tolist():
            near = self._candidates(keys[row, bands[rows == row]])
            text = documents.take(slice(row, row + 1)).texts()[0]
            detail = self._compare(text, near)
            if detail:
                result[row] = detail
        return result

    def _slots(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        return np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)

    def _candidates(self, keys: npt.NDArray[np.uint64]) -> list[int]:
        """Return held-out documents that share a band, those that share most bands first."""
        shared: Counter[int] = Counter()
        for key in keys:
            start = int(np.searchsorted(self._keys, key))
            stop = int(np.searchsorted(self._keys, key, side="right"))
            shared.update((self._order[start : min(stop, start + _COMPARED)] // _BANDS).tolist())
        # The second key makes the choice independent of the order of counting.
        ranked = sorted(shared, key=lambda held: (-shared[held], held))
        return ranked[:_COMPARED]

    def _compare(self, text: memoryview, candidates: list[int]) -> str:
        mine = compute_minhash(text)
        if mine is None:
            return ""
        for held in candidates:
            equal = np.count_nonzero(self._read_minhash(held) == mine) / _PERMUTATIONS
            if equal >= self._similarity:
                file, offset = self._places[held].tolist()
                return f"{equal:.2f} like {self._inputs[file].name} at {offset}"
        return ""

    def _read_minhash(self, held: int) -> npt.NDArray[np.uint32]:
        part = int(np.searchsorted(self._bounds, held, side="right")) - 1
        with self._staging.open(_minhash_key(part)) as stream:
            stream.seek(_MINHASH_BYTES * (held - int(self._bounds[part])))
            return np.frombuffer(stream.read(_MINHASH_BYTES), dtype="<u4")


def _entries_key(part: int) -> str:
    return f"held/{part:05d}.bands"


def _minhash_key(part: int) -> str:
    return f"held/{part:05d}.minhash"
