"""Reading rows of tokenised corpora by their number, without scanning footers or indexes."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from perennial.store import Store

_GROUPS_KEPT = 16


@dataclass(frozen=True)
class CorpusLayout:
    """Where a corpus's rows lie: its shards' keys, and their row groups' numbers of rows."""

    keys: tuple[str, ...]
    group_rows: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        """Training sequences of the corpus."""
        return self._ends[-1] if self._ends else 0

    @cached_property
    def _groups(self) -> tuple[tuple[int, int], ...]:
        return tuple((s, g) for s, groups in enumerate(self.group_rows) for g in range(len(groups)))

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return tuple(accumulate(rows for groups in self.group_rows for rows in groups))

    def locate(self, row: int) -> tuple[str, int, int]:
        """(shard key, row group, row in that group) of a row of the corpus."""
        index = bisect_right(self._ends, row)
        shard, group = self._groups[index]
        first = self._ends[index - 1] if index else 0
        return self.keys[shard], group, row - first


class RowReader:
    """Takes rows of several corpora; keeps the row groups that it read last."""

    def __init__(self, store: Store, layouts: dict[str, CorpusLayout]) -> None:
        self._filesystem, self._base = store.arrow()
        self._layouts = layouts
        self._files: dict[str, pq.ParquetFile] = {}
        self._groups: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()

    def take(self, wanted: list[tuple[str, int]], row_bytes: int) -> pa.FixedSizeBinaryArray:
        """The tokens of the (corpus, row) pairs, in that order, `row_bytes` each."""
        out = np.empty((len(wanted), row_bytes), dtype=np.uint8)
        for index, (corpus, row) in enumerate(wanted):
            key, group, offset = self._layouts[corpus].locate(row)
            out[index] = self._group(key, group, row_bytes)[offset]
        return pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(row_bytes), len(wanted), [None, pa.py_buffer(out)]
        )

    def _group(self, key: str, group: int, row_bytes: int) -> np.ndarray:
        """One row group as bytes `(rows, row_bytes)`."""
        cached = self._groups.get((key, group))
        if cached is not None:
            self._groups.move_to_end((key, group))
            return cached
        column = self._file(key).read_row_group(group, columns=["tokens"])["tokens"]
        chunk = column.combine_chunks()
        chunk = chunk.chunk(0) if isinstance(chunk, pa.ChunkedArray) else chunk
        flat = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
        first = chunk.offset * row_bytes
        rows = flat[first : first + len(chunk) * row_bytes].reshape(len(chunk), row_bytes)
        self._groups[key, group] = rows
        if len(self._groups) > _GROUPS_KEPT:
            self._groups.popitem(last=False)
        return rows

    def _file(self, key: str) -> pq.ParquetFile:
        if key not in self._files:
            self._files[key] = pq.ParquetFile(f"{self._base}/{key}", filesystem=self._filesystem)
        return self._files[key]
