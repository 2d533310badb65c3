"""The plan's batches as arrays: the rows that `StageMix.count_taken` counts, many steps at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from perennial.mixture.plan import StageMix

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.int64]


def slice_rank_rows(global_batch: int, rank: int, world_size: int) -> slice:
    """Return the part of every global batch that one rank trains.

    Parts differ by one sequence at most, and together they are the whole batch.

    Args:
        global_batch: sequences of a global batch.
        rank: number of the worker, from 0.
        world_size: number of workers.
    """
    return slice(rank * global_batch // world_size, (rank + 1) * global_batch // world_size)


class Batches:
    """The batches of a stage, from any step on.

    Starting at a step costs the same for every step, so that resuming is a seek.

    Args:
        mix: the stage.
        step: first step (of the stage) whose batch `take` returns.
    """

    def __init__(self, mix: StageMix, step: int) -> None:
        sources = mix.sources
        self._mix = mix
        self._step = step
        self._taken = np.array(mix.count_taken(step), dtype=np.int64)
        self._starts = np.array([source.start for source in sources], dtype=np.int64)
        self._extents = np.array([source.extent for source in sources], dtype=np.int64)
        self._firsts = np.array([source.first for source in sources], dtype=np.int64)
        quotas = np.array([source.sequences for source in sources], dtype=np.int64)
        self._whole = np.repeat(np.arange(len(sources)), quotas // mix.steps)
        self._arc_ends = np.cumsum(quotas % mix.steps)

    def take(self, steps: int) -> tuple[Numbers, Numbers]:
        """Return the next batches as source indices and rows, two arrays `(steps, global_batch)`.

        A batch is in the order of its sources, and within a source in that of its rows.
        """
        sources = self._sources(steps)
        flat = sources.ravel()
        order = np.argsort(flat, kind="stable")
        counts = np.bincount(flat, minlength=len(self._taken))
        first = self._taken - np.cumsum(counts) + counts
        # Within a source, rows are numbered on from what was taken before: the first of a source
        # stands at `first` in the sorted order, which `order` undoes.
        rows = np.empty_like(flat)
        rows[order] = first[flat[order]] + np.arange(len(flat))
        rows = self._firsts[flat] + (self._starts[flat] + rows) % self._extents[flat]
        self._taken += counts
        self._step += steps
        return sources, rows.reshape(sources.shape)

    def _sources(self, steps: int) -> Numbers:
        """Return the source of each sequence of the next batches, `(steps, global_batch)`.

        Every batch has the whole parts, and one of each source whose arc holds its point.
        """
        circle, stride = self._mix.steps, self._mix.stride
        points = (self._step * stride % circle + np.arange(steps) * stride) % circle
        rounds = np.arange(self._mix.global_batch - len(self._whole)) * circle
        more = np.searchsorted(self._arc_ends, points[:, None] + rounds, side="right")
        whole = np.broadcast_to(self._whole, (steps, len(self._whole)))
        return np.sort(np.concatenate([whole, more], axis=1), axis=1, kind="stable")
