"""Comparison of shards with the digests in their manifests, beside the reading of their rows.

Every worker reads some rows of every shard, so each one hashing them all would read a corpus as
many times as there are workers. Instead a shard belongs to one rank, which hashes it whole before
it gives out its own rows of the first block that takes any rank's rows from that shard. No step
ends without the rows of every rank, so none that uses a shard ends before the shard was compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from perennial.mixture.plan import StageMix
from perennial.mixture.row_reader import CorpusLayout
from perennial.store import check_object

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.store import Store

_AT_ONCE = 4
"""Shards that are hashed at the same time, in threads: they wait for storage, and hashing does not
hold the interpreter's lock."""


class ShardCheck:
    """Check of the shards that belong to one rank, each once.

    Args:
        store: where the shards are.
        layouts: shards of the stage's corpora, by name, with their digests.
        mix: the stage.
        rank: number of the worker, from 0.
        world_size: number of workers.
    """

    def __init__(
        self,
        store: Store,
        layouts: Mapping[str, CorpusLayout],
        mix: StageMix,
        rank: int,
        world_size: int,
    ) -> None:
        self._store = store
        self._layouts = [layouts[source.corpus] for source in mix.sources]
        self._rank, self._world_size = rank, world_size
        self._threads = ThreadPoolExecutor(_AT_ONCE)
        self._checks: dict[str, Future[None]] = {}

    def start(
        self, sources: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> list[Future[None]]:
        """Begin to check this rank's shards among those that hold some rows of any rank.

        Args:
            sources: index of the source of every row.
            rows: numbers of the rows in their corpora, in the shape of `sources`.

        Returns:
            The checks, those begun earlier too; `result()` of one raises Altered for a shard that
            is missing or damaged.
        """
        return [
            check
            for source in np.unique(sources).tolist()
            for check in self._check(self._layouts[source], rows[sources == source])
        ]

    def _check(self, layout: CorpusLayout, rows: npt.NDArray[np.int64]) -> list[Future[None]]:
        if not layout.digests:
            return []
        shards, _ = layout.locate(rows)
        mine = [s for s in np.unique(shards).tolist() if s % self._world_size == self._rank]
        for shard in mine:
            key = layout.keys[shard]
            if key not in self._checks:
                self._checks[key] = self._threads.submit(
                    check_object, self._store, key, layout.digests[shard]
                )
        return [self._checks[layout.keys[shard]] for shard in mine]
