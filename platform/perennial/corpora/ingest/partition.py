"""How a corpus is divided for the scatter_piece, and where each document goes. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from perennial.corpora.formats.base import FileSpan
from perennial.corpora.formats.open import find_kind
from perennial.corpora.manifest import InputFile

if TYPE_CHECKING:
    import numpy.typing as npt

# Rough, and only of influence on how many shards there are.
_BYTES_PER_TOKEN = 4
_SHARDS_PER_DIGEST_PART = 4
_MOST_PIECES = 4096
_LARGEST_PIECE_BYTES = 512 << 20
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


InputPiece = tuple[FileSpan, ...]
"""what one scatter task reads"""


def plan_pieces(inputs: Sequence[InputFile], piece_bytes: int) -> list[InputPiece]:
    """Divides the inputs, in order, into pieces of about `piece_bytes`.

    Files are split where their format allows it, others stay whole; small files share a piece.
    """
    pieces: list[InputPiece] = []
    current: list[FileSpan] = []
    held = 0
    for index, file in enumerate(inputs):
        parts = max(1, math.ceil(file.size_bytes / piece_bytes)) if _is_splittable(file) else 1
        bounds = [file.size_bytes * part // parts for part in range(parts + 1)]
        for start, end in pairwise(bounds):
            if current and held + end - start > piece_bytes:
                pieces.append(tuple(current))
                current, held = [], 0
            current.append(FileSpan(index, start, end))
            held += end - start
    return [*pieces, tuple(current)] if current else pieces


def shard_count(inputs: Sequence[InputFile], shard_tokens: int) -> int:
    """How many shards a corpus has: a function of its files' sizes alone."""
    tokens = sum(text_bytes(file) // _BYTES_PER_TOKEN for file in inputs)
    return max(1, math.ceil(tokens / shard_tokens))


def piece_size(inputs: Sequence[InputFile], least_bytes: int) -> int:
    """Bytes of a piece: larger in a large corpus, because every shard is gathered from all pieces.

    Pieces times shards are ranges to read, which would grow with the square of the corpus.
    """
    text = sum(map(text_bytes, inputs))
    return max(least_bytes, min(text // _MOST_PIECES, _LARGEST_PIECE_BYTES))


def text_bytes(file: InputFile) -> int:
    """About how much text a file holds; nothing where its format is unknown."""
    kind = find_kind(file.name)
    return 0 if kind is None else file.size_bytes * kind.expansion


@dataclass(frozen=True)
class Layout:
    """Into how many parts the documents of a corpus are dealt; a function of its files' sizes."""

    shards: int
    held_parts: int
    """of held-out documents, which are dealt apart from the others"""
    digest_parts: int
    """of the digests of all documents"""

    @property
    def parts(self) -> int:
        """Parts of documents: those of the shards, then the held-out ones."""
        return self.shards + self.held_parts


def layout_of(shards: int, holdout_share: float) -> Layout:
    """The layout of a corpus with that many shards."""
    held = max(1, math.ceil(shards * holdout_share))
    return Layout(shards, held, math.ceil(shards / _SHARDS_PER_DIGEST_PART))


def text_digest(text: bytes) -> bytes:
    """16 bytes that stand for a text; equal texts have equal digests in every corpus."""
    return hashlib.sha256(text).digest()[:16]


def file_salts(names: Sequence[str], seed: int) -> npt.NDArray[np.uint64]:
    """64 random bits for each file, by its name and the seed."""
    key = str(seed).encode()
    salts = [hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in names]
    return np.frombuffer(b"".join(salts), dtype="<u8")


def order_keys(
    salts: npt.NDArray[np.uint64], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """Where each document stands in its shard: 64 random bits by its position in the corpus.

    Of one file no two are equal.
    """
    return splitmix64(salts + offsets.astype(np.uint64) * _GOLDEN)


def destinations(orders: npt.NDArray[np.uint64], parts: int) -> npt.NDArray[np.int64]:
    """The part of each document, by its position alone.

    So parts are of one size whatever the texts are: copies of a text are spread over all of them.
    """
    return (splitmix64(orders + _GOLDEN) % np.uint64(parts)).astype(np.int64)


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of 64-bit numbers after which every bit depends on all (splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def digest_bounds(parts: int) -> list[int]:
    """The first digest of each part, and 2**64: parts of digests are ranges of them."""
    return [part * 2**64 // parts for part in range(parts)] + [2**64]


def holdout_bound(share: float) -> int:
    """Documents whose digest's first 8 bytes (little-endian) are below it are held out.

    The seed has no part in it, so a text that is held out of one corpus is never trained as part
    of another with the same share.
    """
    return int(share * 2**64)


def _is_splittable(file: InputFile) -> bool:
    kind = find_kind(file.name)
    return kind is not None and kind.splittable
