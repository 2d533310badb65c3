"""Held-out losses of new and old corpora in a stage's first steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from perennial.corpora import read_holdout, read_manifest
from perennial.training.engine.grid import Grid

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.store import Store
    from perennial.training.job import Job

MOST_ROWS = 8
"""sequences of each side: enough to see a leap"""
LAST_LOOK = 64


def looks(steps: int) -> set[int]:
    """Return the steps of a stage after which losses are measured: 0, 1, 2, 4, ... 64."""
    return {0} | {2**power for power in range(LAST_LOOK.bit_length())} & set(range(steps + 1))


def rows_of_a_side(global_batch: int) -> int:
    """Return the sequences of each side: both together are a batch at most, or one of each."""
    return min(MOST_ROWS, max(1, global_batch // 2))


class JoinWatch:
    """Measures how a stage joins the trunk, or the stored model that the trunk starts from.

    What it measures depends on the weights and the corpora alone, so a resumed job measures the
    same. Raises InputError when a corpus is not there.
    """

    def __init__(self, store: Store, job: Job, engine: Any, first_step: int) -> None:
        # Random weights have nothing to lose, but what the trunk starts from may be a stored model.
        is_first = job.start is None and job.model.path is not None
        steps = looks(job.mix.steps) if job.old or is_first else set()
        self._due = {job.first_step + step for step in steps if job.first_step + step >= first_step}
        self._engine = engine
        self._job = job
        self._rows = _read(store, job) if self._due else {}
        self._before = self._losses() if first_step == job.first_step and self._due else None

    def after(self, step: int) -> dict[str, dict[str, float]]:
        """Return what to add to the row of the step that led to trunk step `step`; usually nothing.

        `heldout` is measured after it, `heldout_before` before the stage's first step: losses in
        nats per token by side, `new` and `old`. A collective.
        """
        losses: dict[str, dict[str, float]] = {}
        if self._before is not None:
            losses["heldout_before"], self._before = self._before, None
        if step in self._due:
            losses["heldout"] = self._losses()
        return losses

    def _losses(self) -> dict[str, float]:
        """Return nats per token by side; weights and random numbers stay: dropout is off."""
        from perennial.training.engine.engine import loss_of

        job, engine = self._job, self._engine
        grid, micro = Grid.here(job.training.tensor_parallel), job.training.micro_batch
        sums = torch.zeros(len(self._rows), 2, device=engine.device)
        engine.eval()
        with torch.no_grad():
            for total, rows in zip(sums, self._rows.values(), strict=True):
                for part, counted in shared_out(rows, grid.data_rank, grid.data_size, micro):
                    ids = torch.from_numpy(part).to(engine.device)
                    loss = loss_of(engine, ids, job.training, job.end_of_document).float()
                    counted = counted if grid.leads else 0
                    total += torch.stack([loss, torch.ones_like(loss)]) * counted
        engine.train()
        dist.all_reduce(sums)
        totals = zip(self._rows, sums.tolist(), strict=True)
        return {side: loss / rows for side, (loss, rows) in totals if rows}


def shared_out(
    rows: npt.NDArray[np.int64], rank: int, world_size: int, micro: int
) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Yield a rank's parts of at most `micro` rows, and how many of a part's rows count.

    Every rank gets as many parts as every other, as collectives inside the model need; where its
    rows are used up it gets one that does not count.
    """
    mine = rows[rank::world_size]
    parts = -(-len(rows) // (world_size * micro))
    for first in range(0, parts * micro, micro):
        part = mine[first : first + micro]
        yield (part, len(part)) if len(part) else (rows[:1], 0)


def _read(store: Store, job: Job) -> dict[str, npt.NDArray[np.int64]]:
    """Read the held-out sequences `(rows, sequence)` of both sides, the same on every rank."""
    sides = {"new": job.mix.corpora, "old": job.old}
    return {side: _share_of_each(store, names, job) for side, names in sides.items() if names}


def _share_of_each(store: Store, corpora: Sequence[str], job: Job) -> npt.NDArray[np.int64]:
    rows = rows_of_a_side(job.mix.global_batch)
    share, more = divmod(rows, min(len(corpora), rows))
    parts = [
        _heldout(store, corpus, job, share + (index < more))
        for index, corpus in enumerate(corpora[:rows])
    ]
    return np.concatenate(parts)


def _heldout(store: Store, corpus: str, job: Job, rows: int) -> npt.NDArray[np.int64]:
    """Return the first held-out sequences `(rows, sequence)` of a corpus; fewer if it has fewer."""
    wanted = rows * job.sequence_length
    parts: list[npt.NDArray[Any]] = []
    manifest = read_manifest(store, corpus)
    # As rows of training are packed.
    begin = [] if manifest.begin_of_document is None else [manifest.begin_of_document]
    for document in read_holdout(store, manifest):
        parts += [np.array(begin, np.int64), document.tokens]
        wanted -= len(begin) + len(document.tokens)
        if wanted <= 0:
            break
    flat = np.concatenate([np.empty(0, np.int64), *parts])
    full = min(rows, len(flat) // job.sequence_length)
    return flat[: full * job.sequence_length].reshape(full, -1).astype(np.int64)
