"""Run files of staged documents: a section for every part, located by an index at the head.

Layout: (sections + 1) little-endian 64-bit offsets, then the sections. A reader needs 16 bytes of
index and one range of the file, however many sections there are. Sections of documents are Arrow
IPC streams, others are arrays of fixed-size entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow.fs import FileSystem, LocalFileSystem

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.store import Store

SCHEMA = pa.schema(
    [
        pa.field("file", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("order", pa.uint64()),
        pa.field("digest", pa.uint64()),
        pa.field("text", pa.large_binary()),
        # Null where there is none; a quarantined part of a file has a reason.
        pa.field("domain", pa.string()),
        pa.field("metadata", pa.list_(pa.string())),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)

ENTRY = np.dtype([("digest", "<u8"), ("rest", "<u8"), ("file", "<i4"), ("offset", "<i8")])
"""an entry for a document in a section of digests"""

_BATCH_BYTES = 1 << 20
_REQUESTS_AT_ONCE = 32


def run_key(piece: int, run: int) -> str:
    """Return the key of a run file below the staging folder.

    Args:
        piece: number of the piece.
        run: number of the run file of that piece.
    """
    return f"pieces/{piece:06d}-{run:04d}.run"


class SectionFile:
    """Writer of a file of sections; `close` completes it, and leaves its stream open."""

    def __init__(self, stream: BinaryIO, sections: int) -> None:
        self._stream = stream
        self._ends = [8 * (sections + 1)]
        self._sections = sections
        # Room for the index, which `close` writes once all sections have their ends.
        stream.write(bytes(self._ends[0]))

    def add(self, data: bytes) -> None:
        """Append a section."""
        self._stream.write(data)
        self._ends.append(self._stream.tell())

    def add_documents(
        self, columns: dict[str, Any], texts: Sequence[bytes], compression: str | None
    ) -> None:
        """Append a section of documents.

        Args:
            columns: SCHEMA's columns but the text; None for a column of nulls.
            texts: the texts, as UTF-8.
            compression: of Arrow's buffers; None for none.
        """
        if texts:
            options = pa.ipc.IpcWriteOptions(compression=compression)
            sink = pa.PythonFile(self._stream, mode="w")
            with pa.ipc.new_stream(sink, SCHEMA, options=options) as writer:
                for batch in _batches(columns, texts):
                    writer.write_batch(batch)
        self._ends.append(self._stream.tell())

    def close(self) -> None:
        """Write the index."""
        if len(self._ends) != self._sections + 1:
            raise ValueError(f"{len(self._ends) - 1} of {self._sections} sections were written")
        self._stream.seek(0)
        self._stream.write(np.array(self._ends, dtype="<i8").tobytes())


def _open_staged(staging: Store) -> tuple[FileSystem, str]:
    """Return the file system and base path of staged files; local files are memory-mapped."""
    filesystem, base = staging.arrow()
    return LocalFileSystem(use_mmap=True) if staging.is_local else filesystem, base


def read_sections(staging: Store, places: Iterable[tuple[str, int | range]]) -> Iterator[pa.Buffer]:
    """Yield the sections that are not empty, in the order of the places.

    Object storage gets many requests at a time: a part of a large corpus has a small section in
    every one of thousands of files, and waiting for one after the other would take days.

    Args:
        staging: the store of staged files.
        places: (key of the file, number of the section, or of successive ones) pairs.
    """
    filesystem, base = _open_staged(staging)

    def read(place: tuple[str, int | range]) -> list[pa.Buffer]:
        which = place[1] if isinstance(place[1], range) else range(place[1], place[1] + 1)
        return _read_range(filesystem, f"{base}/{place[0]}", which)

    if staging.is_local:
        yield from chain.from_iterable(map(read, places))
        return
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
        yield from chain.from_iterable(threads.map(read, places))


def _read_range(filesystem: FileSystem, path: str, sections: range) -> list[pa.Buffer]:
    with filesystem.open_input_file(path) as source:
        index = source.read_at(8 * (len(sections) + 1), 8 * sections.start)
        bounds = np.frombuffer(index, dtype="<i8")
        source.seek(int(bounds[0]))
        data = source.read_buffer(int(bounds[-1] - bounds[0]))
    places = pairwise((bounds - bounds[0]).tolist())
    return [data.slice(start, end - start) for start, end in places if end > start]


def _batches(columns: dict[str, Any], texts: Sequence[bytes]) -> Iterator[pa.RecordBatch]:
    """Yield the documents in batches: buffers that fit a cache cost least to write."""
    sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    ends = np.cumsum(sizes)
    cuts = [0, *(np.flatnonzero(np.diff(ends // _BATCH_BYTES)) + 1).tolist(), len(texts)]
    for start, stop in pairwise(cuts):
        offsets = np.concatenate([[0], np.cumsum(sizes[start:stop])])
        data = b"".join(texts[start:stop])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        text = pa.Array.from_buffers(pa.large_binary(), stop - start, buffers)
        arrays = [
            text if field.name == "text" else _column(columns[field.name], field, start, stop)
            for field in SCHEMA
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def decode_documents(section: pa.Buffer) -> list[pa.RecordBatch]:
    """Return the documents of a section."""
    return list(pa.ipc.open_stream(section))


def encode_digests(
    digests: npt.NDArray[np.uint64], files: npt.NDArray[Any], offsets: npt.NDArray[Any]
) -> bytes:
    """Return the bytes of a section of digests.

    Args:
        digests: both 64-bit halves of every document's digest `(documents, 2)`.
        files: the number of every document's file `(documents,)`.
        offsets: every document's offset in its file `(documents,)`.
    """
    entries = np.empty(len(digests), dtype=ENTRY)
    entries["digest"], entries["rest"] = digests[:, 0], digests[:, 1]
    entries["file"], entries["offset"] = files, offsets
    return entries.tobytes()


def _column(values: Any, field: pa.Field, start: int, stop: int) -> pa.Array:
    if values is None:
        return pa.nulls(stop - start, field.type)
    return pa.array(values[start:stop], type=field.type)
