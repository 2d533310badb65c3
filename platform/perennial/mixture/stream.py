"""From the plan to batches: Ray Data reads what the plan names, one lazy stream a worker.

Each worker owns one dataset with one read task that yields its blocks one after the other. Ray
Data runs the task as a streaming generator under backpressure, so nothing has to be split between
workers, no plan is ever handed over whole, and resuming at any step is a seek: the task starts
with the block of that step (invariants I2, I3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from perennial.mixture.plan import StageMix
from perennial.mixture.rows import CorpusLayout, RowReader

if TYPE_CHECKING:
    from perennial.store import Store

BLOCK_BYTES = 4 << 20
READER_CPUS = 0.1
"""A reader mostly waits for storage; it must fit beside workers that reserve most CPUs."""


def rank_dataset(
    store: Store,
    layouts: dict[str, CorpusLayout],
    mix: StageMix,
    row_bytes: int,
    *,
    rank: int,
    world_size: int,
    first_step: int,
) -> ray.data.Dataset:
    """The sequences of one rank from `first_step` (of the stage) to the stage's end.

    Rows are `step` (int64) and `tokens` (fixed-size binary of `row_bytes`), in training order; a
    step has `global_batch / world_size` rows of every rank.
    """
    blocks = _RankBlocks(store, layouts, mix, row_bytes, rank, world_size, first_step)
    dataset = ray.data.read_datasource(
        _PlanSource(blocks), override_num_blocks=1, ray_remote_args={"num_cpus": READER_CPUS}
    )
    # Ray cuts and joins what a task yields to this size; ours are there already.
    dataset.context.target_max_block_size = 2 * BLOCK_BYTES
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    return dataset


def step_batches(
    tables: Iterable[pa.Table], rows_per_step: int, first_step: int, dtype: np.dtype[Any]
) -> Iterator[tuple[int, np.ndarray]]:
    """(step, tokens `(rows_per_step, sequence)` int64) from a rank's tables, checked for order.

    Raises RuntimeError when a row does not carry the step that it is read for.
    """
    pending: pa.Table | None = None
    step = first_step
    for table in tables:
        rows = table if pending is None else pa.concat_tables([pending, table])
        full = rows.num_rows // rows_per_step
        for index in range(full):
            batch = rows.slice(index * rows_per_step, rows_per_step)
            found = batch["step"].to_numpy()
            if not (found == step).all():
                raise RuntimeError(f"the stream gave rows of steps {found.tolist()} at step {step}")
            yield step, _tokens(batch["tokens"], dtype)
            step += 1
        pending = rows.slice(full * rows_per_step)
    if pending is not None and pending.num_rows:
        raise RuntimeError(f"the stream ended inside step {step}")


def _tokens(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> np.ndarray:
    width = column.type.byte_width
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype=np.uint8)[
            chunk.offset * width : (chunk.offset + len(chunk)) * width
        ]
        for chunk in column.chunks
    ]
    flat = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return flat.view(dtype).reshape(len(column), -1).astype(np.int64)


class _RankBlocks:
    """Yields one rank's tables; a plain object that travels to the read task."""

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
        self._layouts = layouts
        self._mix = mix
        self._row_bytes = row_bytes
        self._share = mix.global_batch // world_size
        self._rank = rank
        self._first_step = first_step

    def __call__(self) -> Iterator[pa.Table]:
        reader = RowReader(self._store, self._layouts)
        steps_per_block = max(1, BLOCK_BYTES // (self._share * self._row_bytes))
        for first in range(self._first_step, self._mix.steps, steps_per_block):
            last = min(first + steps_per_block, self._mix.steps)
            yield self._table(reader, first, last)

    def _table(self, reader: RowReader, first: int, last: int) -> pa.Table:
        wanted: list[tuple[str, int]] = []
        for step in range(first, last):
            batch = self._mix.rows(step)[self._rank * self._share : (self._rank + 1) * self._share]
            wanted += [(self._mix.sources[index].corpus, row) for index, row in batch]
        steps = np.repeat(np.arange(first, last, dtype=np.int64), self._share)
        return pa.table({"step": steps, "tokens": reader.take(wanted, self._row_bytes)})


class _PlanSource(Datasource):  # type: ignore[misc]
    """One read task whose blocks come from an iterator."""

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
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._blocks, unknown)]
