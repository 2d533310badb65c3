"""What becomes of each staged record of a shard: trained, held out, dropped or quarantined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from perennial.corpora.pieces import holdout_bound

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from perennial.corpora.manifest import IngestSettings


class Removed(NamedTuple):
    """A record that is neither trained nor held out."""

    file: int
    offset: int
    reason: str
    """"" for a dropped duplicate"""
    detail: str
    first: tuple[int, int] | None
    """(file, offset) of the document that a duplicate equals"""


@dataclass(frozen=True)
class ShardDocuments:
    """A shard's good documents as columns, and what becomes of which."""

    texts: pa.LargeStringArray
    domains: pa.StringArray
    sizes: npt.NDArray[np.int64]
    """UTF-8 bytes of each text"""
    trained: npt.NDArray[np.int64]
    """indices of the documents to train on, in their order"""
    held_out: npt.NDArray[np.int64]
    """indices of the held-out documents, in their order"""
    repeats: int
    """documents whose text occurred before, dropped or not"""
    dropped: list[Removed]
    bad: list[Removed]


def arrange(table: pa.Table, settings: IngestSettings) -> ShardDocuments:
    """Decides a shard's documents; the order of the table's rows has no influence."""
    good = pc.equal(table["reason"], "")
    bad = table.filter(pc.invert(good)).select(["file", "offset", "reason", "detail"]).to_pylist()
    table = table.filter(good).combine_chunks()
    column = {name: table[name].to_numpy() for name in _NUMBERS}
    first = _first_equal(column)
    repeat = first != np.arange(len(first))
    dropped = repeat if settings.duplicates == "drop" else np.zeros(len(repeat), dtype=bool)
    held = _held_out(column, settings.holdout_share)
    order = np.lexsort((column["offset"], column["file"], column["order"]))
    return ShardDocuments(
        texts=_array(table["text"]),
        domains=_array(table["domain"]),
        sizes=pc.binary_length(table["text"]).to_numpy().astype(np.int64),
        trained=order[(~held & ~dropped)[order]],
        held_out=order[(held & ~dropped)[order]],
        repeats=int(repeat.sum()),
        dropped=[_duplicate(column, i, int(first[i])) for i in np.flatnonzero(dropped).tolist()],
        bad=[Removed(**row, first=None) for row in bad],
    )


_NUMBERS = ("file", "offset", "order", "digest", "digest_rest")


def _first_equal(column: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """For each document the index of the first one, by position, with the same digest."""
    names = ("offset", "file", "digest_rest", "digest")
    order = np.lexsort([column[name] for name in names])
    low, high = column["digest"][order], column["digest_rest"][order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    group = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[group]
    return first


def _held_out(column: dict[str, npt.NDArray[Any]], share: float) -> npt.NDArray[np.bool_]:
    """Whether each document is held out; all copies of a text are on one side.

    A shard with two different texts holds out at least one, the lowest, so that a small corpus
    can be evaluated.
    """
    digests = column["digest"]
    held = digests < np.uint64(holdout_bound(share))
    if share > 0 and not held.any() and len(np.unique(digests)) > 1:
        held = digests == digests.min()
    return np.asarray(held)


def _duplicate(column: dict[str, npt.NDArray[Any]], index: int, first: int) -> Removed:
    file, offset = column["file"], column["offset"]
    equal = (int(file[first]), int(offset[first]))
    return Removed(int(file[index]), int(offset[index]), "", "", equal)


def _array(column: pa.ChunkedArray) -> Any:
    combined = column.combine_chunks()
    # An empty column has no chunk to return.
    return combined.chunk(0) if hasattr(combined, "chunk") else combined
