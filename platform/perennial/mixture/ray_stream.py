"""From the plan to batches: Ray Data reads what the plan names, one lazy stream a worker.

Each worker owns one dataset with one read task that yields its blocks one after the other. Ray
Data runs the task as a streaming generator under backpressure, so nothing has to be split between
workers, no plan is ever handed over whole, and resuming at any step is a seek: the task starts
with the block of that step (invariants I2, I3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from perennial.mixture.batches import Batches, slice_rank_rows
from perennial.mixture.plan import StageMix
from perennial.mixture.row_reader import CorpusLayout, RowReader
from perennial.mixture.shard_check import ShardCheck

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.store import Store

BLOCK_BYTES = 4 << 20
_MOST_STEPS = 1024
"""Most steps of a block, so that a worker of many, with few rows each, plans a part at a time."""
READER_CPUS = 0.1
"""A reader mostly waits for storage; it must fit beside workers that reserve most CPUs."""


def build_rank_dataset(
    store: Store,
    layouts: dict[str, CorpusLayout],
    mix: StageMix,
    row_bytes: int,
    *,
    rank: int,
    world_size: int,
    first_step: int,
) -> ray.data.Dataset:
    """Return the sequences of one rank from a step on to the stage's end.

    Rows are `step` (int64) and `tokens` (fixed-size binary of `row_bytes`), in training order. The
    ranks' parts of a batch are those of `slice_rank_rows`.

    Args:
        store: where the corpora are.
        layouts: shards of the stage's corpora, by name.
        mix: the stage.
        row_bytes: bytes of one sequence.
        rank: number of the worker, from 0.
        world_size: number of workers.
        first_step: step of the stage, from 0.

    A shard is compared with its digest when the first block takes rows of it (`ShardCheck`); the
    read task raises Altered for one that is missing or damaged.

    Raises:
        ValueError: there are more workers than sequences in a batch.
    """
    if mix.global_batch < world_size:
        raise ValueError(f"{world_size} workers cannot share batches of {mix.global_batch}")
    blocks = _RankBlocks(store, layouts, mix, row_bytes, rank, world_size, first_step)
    dataset = ray.data.read_datasource(
        _PlanSource(blocks), override_num_blocks=1, num_cpus=READER_CPUS
    )
    # Ray splits and joins what a task yields to this size; these blocks have it already.
    dataset.context.target_max_block_size = 2 * BLOCK_BYTES
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    return dataset


def read_step_batches(
    tables: Iterable[pa.Table], rows_per_step: int, first_step: int, dtype: np.dtype[Any]
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield the steps with their tokens `(rows_per_step, sequence)` from a rank's tables.

    Args:
        tables: tables of a rank's dataset, in order; a step may go over their borders.
        rows_per_step: rows of this rank in a batch.
        first_step: step of the first row.
        dtype: stored type of a token.

    Raises:
        RuntimeError: a row does not carry the step that it is read for, or the tables end inside
            a step.
    """
    step = first_step
    begun: _Rows | None = None
    for table in tables:
        rows = _Rows.of(table, dtype)
        rows = rows if begun is None else begun.followed_by(rows)
        full = len(rows.steps) // rows_per_step
        whole = rows.steps[: full * rows_per_step]
        wrong = whole != np.repeat(np.arange(step, step + full), rows_per_step)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise RuntimeError(
                f"the stream gave a row of step {whole[at]} at step {step + at // rows_per_step}"
            )
        for first in range(0, len(whole), rows_per_step):
            yield step, rows.tokens[first : first + rows_per_step].astype(np.int64)
            step += 1
        begun = rows.after(len(whole))
    if begun is not None and len(begun.steps):
        raise RuntimeError(f"the stream ended inside step {step}")


class _Rows(NamedTuple):
    """Rows of a rank: `steps` is (rows), `tokens` is (rows, sequence)."""

    steps: npt.NDArray[np.int64]
    tokens: npt.NDArray[Any]

    @classmethod
    def of(cls, table: pa.Table, dtype: np.dtype[Any]) -> _Rows:
        """Return the rows of a table, without a copy when it is in one chunk."""
        column = table["tokens"]
        width = column.type.byte_width
        parts = [
            np.frombuffer(chunk.buffers()[1], dtype=np.uint8)[
                chunk.offset * width : (chunk.offset + len(chunk)) * width
            ]
            for chunk in column.chunks
        ]
        flat = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])
        return cls(table["step"].to_numpy(), flat.view(dtype).reshape(-1, width // dtype.itemsize))

    def followed_by(self, other: _Rows) -> _Rows:
        """Return these rows and then the others."""
        if not len(self.steps):
            return other
        return _Rows(
            np.concatenate([self.steps, other.steps]), np.concatenate([self.tokens, other.tokens])
        )

    def after(self, rows: int) -> _Rows:
        """Return all but the first `rows` rows."""
        return _Rows(self.steps[rows:], self.tokens[rows:])


class _Block(NamedTuple):
    """Plan of one table of a rank.

    steps: `(steps)`; sources, rows: index of the source and number of the row of every sequence,
        `(steps, sequences)`.
    checks: of the shards, to wait for.
    """

    steps: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    checks: list[Future[None]]


class _RankBlocks:
    """One rank's tables: a plain object, so that it can travel to the read task."""

    def __init__(
        self,
        store: Store,
        layouts: dict[str, CorpusLayout],
        mix: StageMix,
        row_bytes: int,
        rank: int,
        world_size: int,
        first_step: int,
    ) -> None:
        self._store = store
        self._layouts = {source.corpus: layouts[source.corpus] for source in mix.sources}
        self._mix = mix
        self._row_bytes = row_bytes
        self._rank, self._world_size = rank, world_size
        self._mine = slice_rank_rows(mix.global_batch, rank, world_size)
        share = self._mine.stop - self._mine.start
        self._steps_per_block = min(max(1, BLOCK_BYTES // (share * row_bytes)), _MOST_STEPS)
        self._first_step = first_step

    def tables(self) -> Iterator[pa.Table]:
        reader = RowReader(self._store, self._layouts, self._row_bytes)
        check = ShardCheck(self._store, self._layouts, self._mix, self._rank, self._world_size)
        ahead = self._blocks(check)
        block = next(ahead, None)
        while block is not None:
            # The next block's shards are hashed while this one's rows are read and trained.
            following = next(ahead, None)
            for shard in block.checks:
                shard.result()
            tokens = self._tokens(reader, block.sources.ravel(), block.rows.ravel())
            of_step = np.repeat(block.steps, block.sources.shape[1])
            yield pa.table({"step": of_step, "tokens": tokens})
            block = following

    def _blocks(self, check: ShardCheck) -> Iterator[_Block]:
        """Yield this rank's blocks; the checks of a block's shards have begun."""
        batches = Batches(self._mix, self._first_step)
        for step in range(self._first_step, self._mix.steps, self._steps_per_block):
            steps = min(self._steps_per_block, self._mix.steps - step)
            sources, rows = batches.take(steps)
            yield _Block(
                np.arange(step, step + steps),
                sources[:, self._mine],
                rows[:, self._mine],
                check.start(sources, rows),
            )

    def _tokens(
        self, reader: RowReader, sources: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> pa.FixedSizeBinaryArray:
        """Return the tokens of rows, read source by source and put in the order of the steps."""
        order = np.argsort(sources, kind="stable")
        present, firsts = np.unique(sources[order], return_index=True)
        wanted = [
            (self._mix.sources[source].corpus, part)
            for source, part in zip(present, np.split(rows[order], firsts[1:]), strict=True)
        ]
        data = reader.read(wanted)
        if len(wanted) > 1:
            places = np.empty_like(order)
            places[order] = np.arange(len(order))
            data = data.take(places, axis=0)
        return pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(self._row_bytes), len(data), [None, pa.py_buffer(data)]
        )


class _PlanSource(Datasource):  # type: ignore[misc]
    """A Ray Data source of one read task, whose blocks come from an iterator."""

    def __init__(self, blocks: _RankBlocks) -> None:
        super().__init__()
        self._blocks = blocks

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_name(self) -> str:
        return "Plan"

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        # The layouts of a large corpus are megabytes: too much for a task's own arguments.
        blocks = ray.put(self._blocks)

        def read() -> Iterator[pa.Table]:
            yield from ray.get(blocks).tables()

        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, unknown)]
