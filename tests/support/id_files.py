"""Files of token ids in every form that is read, written by hand or by their own libraries."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Documents = Sequence[Sequence[int]]


def flat(documents: Documents, end: int, dtype: str = "<u2") -> bytes:
    """The ids of all documents, an end behind each."""
    return np.array([i for ids in documents for i in (*ids, end)], dtype=dtype).tobytes()


def numpy_file(documents: Documents, end: int, dtype: str = "<u2") -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.frombuffer(flat(documents, end, dtype), dtype=dtype))
    return sink.getvalue()


def megatron_index(
    sizes: Sequence[int],
    bounds: Sequence[int],
    *,
    code: int = 8,
    width: int = 2,
    places: Sequence[int] | None = None,
    version: int = 1,
) -> bytes:
    """Megatron-LM's index: head, sizes, places, bounds of documents."""
    if places is None:
        places = [0, *np.cumsum(np.array(sizes, dtype=np.int64) * width).tolist()][: len(sizes)]
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", version, code, len(sizes), len(bounds))
    arrays = (np.array(sizes, "<i4"), np.array(places, "<i8"), np.array(bounds, "<i8"))
    return head + b"".join(array.tobytes() for array in arrays)


def megatron(documents: Documents, end: int, *, sequences: int = 1) -> dict[str, bytes]:
    """A `.bin` and its `.idx`, each document of so many sequences, with an end behind each."""
    parts = [
        [part.tolist() for part in np.array_split(np.array([*ids, end]), sequences)]
        for ids in documents
    ]
    sizes = [len(part) for document in parts for part in document]
    bounds = [0, *np.cumsum([len(document) for document in parts]).tolist()]
    return {"ids.bin": flat(documents, end), "ids.idx": megatron_index(sizes, bounds)}


def table(documents: Documents, kind: Any = None) -> pa.Table:
    return pa.table(
        {"input_ids": pa.array([list(d) for d in documents], kind or pa.list_(pa.int32()))}
    )


def parquet(documents: Documents, kind: Any = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table(documents, kind), sink, row_group_size=7)
    return sink.getvalue()


def arrow(documents: Documents) -> bytes:
    sink = io.BytesIO()
    content = table(documents)
    with pa.ipc.new_stream(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=5)
    return sink.getvalue()


def lines(documents: Documents) -> bytes:
    return b"".join(json.dumps({"input_ids": list(ids)}).encode() + b"\n" for ids in documents)


def id_files(documents: Documents, end: int) -> dict[str, dict[str, bytes]]:
    """The same documents in every form, as the contents of files by name."""
    rows = [{"input_ids": list(ids)} for ids in documents]
    packed: list[list[int]] = []
    for number, ids in enumerate(documents):
        # Rows of three documents, the last one of each without its end.
        if number % 3:
            packed[-1] += [end, *ids]
        else:
            packed.append(list(ids))
    return {
        "lines": {"ids.jsonl": lines(documents)},
        "array": {"ids.json": json.dumps(rows).encode()},
        "parquet": {"ids.parquet": parquet(documents)},
        "parquet of large lists": {"ids.parquet": parquet(documents, pa.large_list(pa.uint16()))},
        "parquet of packed rows": {"ids.parquet": parquet(packed)},
        "lines of packed rows": {"ids.jsonl": lines(packed)},
        "arrow": {"ids.arrow": arrow(documents)},
        "npy": {"ids.npy": numpy_file(documents, end)},
        "npy of int64": {"ids.npy": numpy_file(documents, end, ">i8")},
        "npy without header": {"ids.npy": flat(documents, end)},
        "bin": {"ids.bin": flat(documents, end)},
        "bin without its last end": {"ids.bin": flat(documents, end)[:-2]},
        "megatron": megatron(documents, end),
        "megatron of sentences": megatron(documents, end, sequences=3),
    }


def write_all(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write files into a folder; their paths."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]
