"""Staged documents: a run file holds one segment per shard, found by an index at its head.

Layout: (shards + 1) little-endian 64-bit offsets, then the segments, each an Arrow IPC stream or
nothing. A reader needs 16 bytes of index and one range of the file, however many shards there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMA = pa.schema(
    [
        pa.field("file", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("order", pa.uint64()),
        pa.field("digest", pa.uint64()),
        pa.field("digest_rest", pa.uint64()),
        pa.field("text", pa.large_string()),
        pa.field("domain", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)


class Staged(NamedTuple):
    """One row of a segment: a document, or a quarantined part of a file (with a reason)."""

    file: int
    offset: int
    order: int
    digest: int
    digest_rest: int
    text: bytes
    domain: str
    reason: str
    detail: str


def pack_run(segments: Sequence[Sequence[Staged]]) -> bytes:
    """The bytes of a run file with one segment per shard."""
    parts = [_segment(rows) for rows in segments]
    sizes = [8 * (len(parts) + 1), *map(len, parts)]
    index = np.cumsum(sizes, dtype="<i8").tobytes()
    return b"".join([index, *parts])


def read_segment(filesystem: FileSystem, path: str, shard: int) -> pa.Table:
    """The staged rows of one shard in a run file."""
    with filesystem.open_input_file(path) as source:
        start, end = np.frombuffer(source.read_at(16, 8 * shard), dtype="<i8").tolist()
        if start == end:
            return SCHEMA.empty_table()
        return pa.ipc.open_stream(source.read_at(end - start, start)).read_all()


def join(segments: Iterable[pa.Table]) -> pa.Table:
    """All rows of the segments."""
    return pa.concat_tables([SCHEMA.empty_table(), *segments])


def _segment(rows: Sequence[Staged]) -> bytes | pa.Buffer:
    if not rows:
        return b""
    arrays = [
        pa.array(values, type=field.type)
        for values, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)
    ]
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, SCHEMA, options=options) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
    return sink.getvalue()
