"""Division of a corpus into pieces for the scatter, and of its documents into shards. Pure.

Nothing here depends on the machine, the number of workers or the order of tasks, so the output
depends on the inputs and the seed alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from perennial.corpora.formats.base import FileSpan
from perennial.corpora.formats.open import find_kind
from perennial.corpora.manifest import InputFile

if TYPE_CHECKING:
    import numpy.typing as npt

# Rough; it influences nothing but the number of shards.
_BYTES_PER_TOKEN = 4
_SHARDS_PER_DIGEST_PART = 4
_MOST_PIECES = 4096
_LARGEST_PIECE_BYTES = 512 << 20
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


InputPiece = tuple[FileSpan, ...]
"""spans that one scatter task reads"""


def plan_pieces(inputs: Sequence[InputFile], piece_bytes: int) -> list[InputPiece]:
    """Divide the inputs, in order, into pieces.

    Files are split where their format allows it, others stay whole; small files share a piece.

    Args:
        inputs: the files of the corpus.
        piece_bytes: stored bytes of a piece, roughly.
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


def count_shards(inputs: Sequence[InputFile], shard_tokens: int) -> int:
    """Return how many shards a corpus has: a function of its files' sizes alone.

    Args:
        inputs: the files of the corpus.
        shard_tokens: tokens of a shard, roughly.
    """
    tokens = sum(estimate_text_bytes(file) // _BYTES_PER_TOKEN for file in inputs)
    return max(1, math.ceil(tokens / shard_tokens))


def choose_piece_bytes(inputs: Sequence[InputFile], least_bytes: int) -> int:
    """Return the bytes of a piece, which grow with the corpus.

    Every shard is gathered from all pieces: with pieces of a fixed size, the ranges to read (pieces
    times shards) would grow with the square of the corpus.

    Args:
        inputs: the files of the corpus.
        least_bytes: the smallest piece, in stored bytes.
    """
    text = sum(map(estimate_text_bytes, inputs))
    return max(least_bytes, min(text // _MOST_PIECES, _LARGEST_PIECE_BYTES))


def estimate_text_bytes(file: InputFile) -> int:
    """Return about how much text a file holds; 0 where its format is unknown."""
    kind = find_kind(file.name)
    return 0 if kind is None else file.size_bytes * kind.expansion


@dataclass(frozen=True)
class Layout:
    """Numbers of parts that documents are dealt into; a function of the files' sizes."""

    shards: int
    """of a corpus that is one whole; else those that a domain's documents are dealt into"""
    held_parts: int
    """parts of held-out documents, which are dealt apart from the others"""
    digest_parts: int
    """parts of the digests of all documents"""

    @property
    def parts(self) -> int:
        """Return the parts of documents: those of the shards, then the held-out ones."""
        return self.shards + self.held_parts

    @property
    def sections(self) -> int:
        """Return the sections that every run file has.

        They are those of documents, then those of digests, of lines, and of the bands of fuzzy
        duplicates, which are many and are dealt into as many parts as there are shards.
        """
        return self.parts + 2 * self.digest_parts + self.shards

    def digests_section(self, part: int) -> int:
        """Return the section of a part of the digests."""
        return self.parts + part

    def lines_section(self, part: int) -> int:
        """Return the section of a part of the lines; see `repeated_lines`."""
        return self.parts + self.digest_parts + part

    def bands_section(self, part: int) -> int:
        """Return the section of a part of the bands; see `fuzzy_dedup`."""
        return self.parts + 2 * self.digest_parts + part

    def first_section(self, domain: int) -> int:
        """Return the section of a run file with the first of a domain's documents.

        In a corpus of parts, each domain of a run file has as many sections as there are shards,
        behind those that every run file has.

        Args:
            domain: its number in that run file.
        """
        return self.sections + domain * self.shards


def make_layout(shards: int, holdout_share: float) -> Layout:
    """Return the layout of a corpus.

    Args:
        shards: shards of the corpus.
        holdout_share: share of documents that are held out.
    """
    held = max(1, math.ceil(shards * holdout_share))
    return Layout(shards, held, math.ceil(shards / _SHARDS_PER_DIGEST_PART))


@dataclass(frozen=True)
class ShardSource:
    """The documents of one shard: those of some of the numbers that they were dealt to.

    part: the domain of all of them; None in a corpus that is one whole.
    first, end: these numbers, as a range.
    """

    part: str | None
    first: int
    end: int


def plan_shards(layout: Layout, part_bytes: Mapping[str, int] | None) -> tuple[ShardSource, ...]:
    """Return the shards of a corpus, in the order of its parts.

    A shard of a small part takes as many of the numbers as it needs to be about as large as one of
    a corpus without parts, so that a part has fewer shards, and loses fewer tokens at their ends,
    the smaller it is.

    Args:
        layout: of the corpus.
        part_bytes: bytes of text by domain; None for a corpus that is one whole.
    """
    if part_bytes is None:
        return tuple(ShardSource(None, k, k + 1) for k in range(layout.shards))
    total, shards = sum(part_bytes.values()), list[ShardSource]()
    for name in sorted(part_bytes):
        taken = min(layout.shards, total // max(1, part_bytes[name]) or 1)
        shards += [
            ShardSource(name, first, min(first + taken, layout.shards))
            for first in range(0, layout.shards, taken)
        ]
    return tuple(shards)


def digest_text(text: bytes) -> bytes:
    """Return 16 bytes that identify a text; equal texts have equal digests in every corpus."""
    return hashlib.sha256(text).digest()[:16]


def make_file_salts(names: Sequence[str], seed: int) -> npt.NDArray[np.uint64]:
    """Return 64 pseudo-random bits `(files,)` for every file, from its name and the seed.

    Args:
        names: the files' names in the corpus.
        seed: the seed of the documents' order.
    """
    key = str(seed).encode()
    salts = [hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in names]
    return np.frombuffer(b"".join(salts), dtype="<u8")


def make_order_keys(
    salts: npt.NDArray[np.uint64], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """Return the sort keys of documents in their shards: 64 pseudo-random bits.

    They depend on a document's position in the corpus alone. No two documents of a file have the
    same key, because the function is a bijection of the offset.

    Args:
        salts: bits of every document's file `(documents,)`.
        offsets: offset of every document in its file `(documents,)`.
    """
    return splitmix64(salts + offsets.astype(np.uint64) * _GOLDEN)


def choose_parts(orders: npt.NDArray[np.uint64], parts: int) -> npt.NDArray[np.int64]:
    """Return the part of every document `(documents,)`, from its position alone.

    So all parts have about the same size whatever the texts are: copies of one text are spread over
    all parts, where a choice by the text would put them into one.

    Args:
        orders: the documents' sort keys `(documents,)`.
        parts: the number of parts.
    """
    return (splitmix64(orders + _GOLDEN) % np.uint64(parts)).astype(np.int64)


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix the bits of 64-bit numbers by the bijection that ends splitmix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def digest_bounds(parts: int) -> list[int]:
    """Return the first digest of every part, and 2**64: parts of digests are ranges of them."""
    return [part * 2**64 // parts for part in range(parts)] + [2**64]


def group_rows(parts: npt.NDArray[np.int64], count: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield, for every part below `count`, the rows that belong to it, in their order.

    Args:
        parts: the part of every row `(rows,)`; rows of other parts are left out.
        count: the number of parts.
    """
    rows = np.argsort(parts, kind="stable")
    bounds = np.searchsorted(parts[rows], np.arange(count + 1))
    for start, end in pairwise(bounds.tolist()):
        yield rows[start:end]


def group_by_digest(digests: npt.NDArray[np.uint64], parts: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield, for every part of digests, the rows that belong to it, in their order.

    Args:
        digests: 64 bits of every row `(rows,)`.
        parts: the number of parts.
    """
    bounds = np.array(digest_bounds(parts)[1:-1], dtype=np.uint64)
    yield from group_rows(np.searchsorted(bounds, digests, side="right"), parts)


def holdout_bound(share: float) -> int:
    """Return the bound below which a digest's first 8 bytes (little-endian) mean "held out".

    The seed has no influence, so a text that is held out of one corpus is never trained as part of
    another with the same share.
    """
    return int(share * 2**64)


def _is_splittable(file: InputFile) -> bool:
    kind = find_kind(file.name)
    return kind is not None and kind.splittable
