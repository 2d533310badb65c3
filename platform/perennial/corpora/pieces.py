"""How a corpus is divided for the scatter, and where each document goes. Pure."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from perennial.corpora.manifest import InputFile
from perennial.corpora.names import file_format

# Rough, and only of influence on how many shards there are.
_BYTES_PER_TOKEN = 4
_EXPANSION = {".gz": 3, ".zst": 3, ".parquet": 2}


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) of the input with that index."""

    file: int
    start: int
    end: int


Piece = tuple[Span, ...]
"""what one scatter task reads"""


def plan_pieces(inputs: Sequence[InputFile], piece_bytes: int) -> list[Piece]:
    """Divides the inputs, in order, into pieces of about `piece_bytes`.

    Plain .jsonl and .parquet files are cut (at the next line or row group), others stay whole;
    small files share a piece.
    """
    pieces: list[Piece] = []
    current: list[Span] = []
    held = 0
    for index, file in enumerate(inputs):
        parts = max(1, math.ceil(file.size_bytes / piece_bytes)) if _can_be_cut(file) else 1
        bounds = [file.size_bytes * part // parts for part in range(parts + 1)]
        for start, end in pairwise(bounds):
            if current and held + end - start > piece_bytes:
                pieces.append(tuple(current))
                current, held = [], 0
            current.append(Span(index, start, end))
            held += end - start
    return [*pieces, tuple(current)] if current else pieces


def shard_count(inputs: Sequence[InputFile], shard_tokens: int) -> int:
    """How many shards a corpus has: a function of its files' sizes alone."""
    tokens = 0
    for file in inputs:
        form = file_format(file.name)
        if form is not None:
            factor = _EXPANSION.get(form[1] or form[0], 1)
            tokens += file.size_bytes * factor // _BYTES_PER_TOKEN
    return max(1, math.ceil(tokens / shard_tokens))


def text_digest(text: bytes) -> bytes:
    """16 bytes that stand for a text; equal texts have equal digests in every corpus."""
    return hashlib.sha256(text).digest()[:16]


def destination(digest: bytes, seed: int, shards: int) -> int:
    """The shard of a text: equal texts meet in one shard, where repeats are found."""
    return _hash(digest, seed) % shards


def order_key(file: str, offset: int, seed: int) -> int:
    """Where a document stands in its shard: 64 random bits by its position in the corpus."""
    return _hash(f"{offset}:{file}".encode(), seed)


def holdout_bound(share: float) -> int:
    """Documents whose digest's first 8 bytes (little-endian) are below it are held out.

    The seed has no part in it, so a text that is held out of one corpus is never trained as part
    of another with the same share.
    """
    return int(share * 2**64)


def _hash(data: bytes, seed: int) -> int:
    salted = hashlib.blake2b(data, digest_size=8, key=str(seed).encode()).digest()
    (value,) = struct.unpack("<Q", salted)
    return int(value)


def _can_be_cut(file: InputFile) -> bool:
    return file_format(file.name) in ((".jsonl", ""), (".parquet", ""))
