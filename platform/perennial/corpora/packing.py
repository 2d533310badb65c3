"""Packing of token ids into rows, and of rows and held-out documents into Parquet files."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

GROUP_BYTES = 4 << 20
"""bytes of a row group: what a reader takes at once"""


class RowGroups:
    """Divides a stream of token ids into groups of rows.

    Nothing is lost: ids in = ids in groups + ids of the rest, in the same order.
    """

    def __init__(self, sequence_length: int, rows_per_group: int, dtype: npt.DTypeLike) -> None:
        self.length = sequence_length
        self._group = np.empty(sequence_length * rows_per_group, dtype=dtype)
        self._filled = 0

    def add(self, ids: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """Add ids; yield the groups of rows `(rows, sequence)` that they fill.

        A group is valid until the next one: both are the same memory.
        """
        taken = 0
        while taken < len(ids):
            part = ids[taken : taken + len(self._group) - self._filled]
            self._group[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            taken += len(part)
            if self._filled == len(self._group):
                self._filled = 0
                yield self._group.reshape(-1, self.length)

    def finish(self) -> tuple[npt.NDArray[Any], int]:
        """Return the last rows `(rows, sequence)`, possibly none, and the ids that fill no row."""
        rows = self._filled // self.length
        used = rows * self.length
        return self._group[:used].reshape(rows, self.length), self._filled - used


def add_begins(ids: npt.NDArray[Any], end: int, begin: int | None) -> npt.NDArray[Any]:
    """Return documents with the id of a begin before each of them.

    Args:
        ids: of whole documents `(tokens,)`.
        end: the id that ends each of them.
        begin: the id to put before each of them; None for nothing.
    """
    if begin is None or not len(ids):
        return ids
    return np.insert(ids, np.r_[0, np.flatnonzero(ids == end)[:-1] + 1], begin)


def rows_per_group(sequence_length: int, token_bytes: int) -> int:
    """Return the rows of a full row group.

    Args:
        sequence_length: tokens of a row.
        token_bytes: bytes of a token.
    """
    return max(1, GROUP_BYTES // (sequence_length * token_bytes))


class RowFile:
    """Writer of a shard: one column `tokens` of fixed-size binary, uncompressed.

    The bytes are hashed while they are written, so that the whole shard is never in memory.
    """

    def __init__(self, stream: BinaryIO, sequence_length: int, token_bytes: int) -> None:
        self._type = pa.binary(sequence_length * token_bytes)
        schema = pa.schema([pa.field("tokens", self._type, nullable=False)])
        self._sink = _HashingStream(stream)
        self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, mode="w"), schema, **_PLAIN)
        self.row_groups: list[int] = []

    def write(self, rows: npt.NDArray[Any]) -> None:
        """Append rows `(rows, sequence)` as one row group."""
        column = pa.FixedSizeBinaryArray.from_buffers(
            self._type, len(rows), [None, pa.py_buffer(rows)]
        )
        table = pa.Table.from_arrays([column], schema=self._writer.schema)
        self._writer.write_table(table, row_group_size=len(rows))
        self.row_groups.append(len(rows))

    def close(self) -> tuple[int, str]:
        """Write the footer, leave the stream open; return the bytes written and their sha256."""
        self._writer.close()
        return self._sink.size_bytes, self._sink.sha256.hexdigest()


class _HashingStream(io.RawIOBase):
    """A stream that passes on what is written, and counts and hashes it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.size_bytes = 0
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.size_bytes += len(data)
        return self._stream.write(data)


HOLDOUT_SCHEMA = pa.schema(
    [
        pa.field("tokens", pa.binary(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
    ]
)


def holdout_bytes(tokens: list[bytes], sizes: list[int], domains: list[str]) -> pa.Buffer:
    """Return the bytes of a held-out file: a row per document.

    Args:
        tokens: the stored token ids of every document, with its end.
        sizes: UTF-8 bytes of every document's text.
        domains: the domain of every document; "" for none.
    """
    table = pa.Table.from_pydict(
        {"tokens": tokens, "bytes": sizes, "domain": domains}, schema=HOLDOUT_SCHEMA
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **_PLAIN)
    return sink.getvalue()


_PLAIN: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": False,
    "store_schema": False,
    # One page per row group, so that a reader gets its rows as one buffer, without a copy. A row
    # has several bytes, so GROUP_BYTES bounds the rows of a page as well.
    "data_page_size": GROUP_BYTES,
    "max_rows_per_page": GROUP_BYTES,
}
