"""Staged documents: a run file holds one section per part, found by an index at its head.

Layout: (sections + 1) little-endian 64-bit offsets, then the sections. A reader needs 16 bytes of
index and one range of the file, however many sections there are. Sections of documents are Arrow
IPC streams, others are arrays of fixed-size entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import numpy.typing as npt
    from pyarrow.fs import FileSystem

SCHEMA = pa.schema(
    [
        pa.field("file", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("order", pa.uint64()),
        pa.field("digest", pa.uint64()),
        pa.field("text", pa.large_binary()),
        # Null where there is none; a quarantined part of a file has a reason.
        pa.field("domain", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)

ENTRY = np.dtype([("digest", "<u8"), ("rest", "<u8"), ("file", "<i4"), ("offset", "<i8")])
"""a document in a section of digests"""


def pack_sections(sections: Sequence[Any]) -> bytes:
    """The bytes of a file with these sections (bytes or buffers)."""
    sizes = [8 * (len(sections) + 1), *map(len, sections)]
    index = np.cumsum(sizes, dtype="<i8").tobytes()
    return b"".join([index, *sections])


def read_section(filesystem: FileSystem, path: str, section: int) -> pa.Buffer | None:
    """A section's bytes; None when it is empty."""
    with filesystem.open_input_file(path) as source:
        start, end = np.frombuffer(source.read_at(16, 8 * section), dtype="<i8").tolist()
        if start == end:
            return None
        source.seek(start)
        return source.read_buffer(end - start)


def documents_section(
    columns: dict[str, Any], texts: Sequence[bytes], compression: str | None
) -> bytes | pa.Buffer:
    """The section of these documents: SCHEMA's columns but the text, as arrays or lists."""
    if not texts:
        return b""
    sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
    text = pa.Array.from_buffers(pa.large_binary(), len(texts), buffers)
    arrays = [
        text if field.name == "text" else _column(columns[field.name], field, len(texts))
        for field in SCHEMA
    ]
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, SCHEMA, options=options) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
    return sink.getvalue()


def read_documents(section: pa.Buffer) -> list[pa.RecordBatch]:
    """The documents of a section."""
    return list(pa.ipc.open_stream(section))


def digests_section(
    digests: npt.NDArray[np.uint64], files: npt.NDArray[Any], offsets: npt.NDArray[Any]
) -> bytes:
    """The section of documents with these digests `(documents, 2)`."""
    entries = np.empty(len(digests), dtype=ENTRY)
    entries["digest"], entries["rest"] = digests[:, 0], digests[:, 1]
    entries["file"], entries["offset"] = files, offsets
    return entries.tobytes()


def _column(values: Any, field: pa.Field, length: int) -> pa.Array:
    return pa.nulls(length, field.type) if values is None else pa.array(values, type=field.type)
