"""Provenance of the sequences of one step: corpora, shards and rows. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from perennial.mixture.batches import Batches
from perennial.mixture.plan import StageMix
from perennial.mixture.row_reader import CorpusLayout


@dataclass(frozen=True)
class Origin:
    """Successive rows of one shard.

    first, last: first and last row, counted in the corpus.
    shard_first, shard_last: the same two rows, counted in the shard.
    """

    corpus: str
    first: int
    last: int
    shard: str
    shard_first: int
    shard_last: int

    def __str__(self) -> str:
        count = self.last - self.first + 1
        rows = (
            f"row {self.shard_first}"
            if count == 1
            else f"rows {self.shard_first} to {self.shard_last}"
        )
        return f"{rows} of {self.shard}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def trace_origins(mix: StageMix, layouts: Mapping[str, CorpusLayout], step: int) -> list[Origin]:
    """Return the rows that all ranks train at one step, in the order of the stage's sources.

    Args:
        mix: the stage.
        layouts: shards of its corpora, by name.
        step: step of the stage, from 0.
    """
    sources, rows = (part[0] for part in Batches(mix, step).take(1))
    return [
        origin
        for index in np.unique(sources)
        for origin in _runs(
            mix.sources[index].corpus,
            layouts[mix.sources[index].corpus],
            np.unique(rows[sources == index]),
        )
    ]


def _runs(corpus: str, layout: CorpusLayout, rows: Any) -> Iterator[Origin]:
    shards, inside = layout.locate(rows)
    cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(shards) != 0)) + 1
    for first, end in pairwise([0, *cuts.tolist(), len(rows)]):
        yield Origin(
            corpus,
            int(rows[first]),
            int(rows[end - 1]),
            layout.keys[shards[first]],
            int(inside[first]),
            int(inside[end - 1]),
        )
