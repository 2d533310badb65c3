"""What a file holds is read in bounded memory, whatever the file holds of it at once."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.corpora.formats.base import FileSpan
from perennial.corpora.formats.open import read_span
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.store import open_store

SETTINGS = IngestSettings(sequence_length=8, seed=0)
ROWS, ROW_BYTES = 30, 2 << 20
ARROW_BYTES = 40 << 20
"""two batches of 16 MiB at once, and pages of one row"""
HEAP_BYTES = 48 << 20
"""a batch of 16 MiB as Python's bytes, and some copies of one row"""


@contextmanager
def counted_pool() -> Iterator[pa.MemoryPool]:
    """A pool of everything that Arrow allocates meanwhile."""
    usual = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counted)
    try:
        yield counted
    finally:
        pa.set_memory_pool(usual)


def texts(*, same: bool) -> Iterator[str]:
    for number in range(ROWS):
        yield f"{0 if same else number} " + "some words of a long text " * (ROW_BYTES // 26)


def write_table(path: Path, *, same: bool) -> None:
    """A row group of 30 rows of 2 MiB; each in a page of its own, or all in one dictionary."""
    table = pa.table({"text": list(texts(same=same))})
    pq.write_table(table, path, use_dictionary=same, write_batch_size=1, compression="zstd")


def write_lines(path: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(same=False)).encode()
    path.write_bytes(gzip.compress(lines, 1))


def write_text(path: Path) -> None:
    path.write_text("\n\n".join(texts(same=False)))


def test_a_page_that_takes_too_much_memory_is_not_decoded(tmp_path: Path) -> None:
    path, limit = tmp_path / "page.parquet", 8 * SETTINGS.max_document_bytes
    table = pa.table({"text": [*texts(same=False)] * 2, "other": ["x"] * 2 * ROWS})
    pq.write_table(table, path, use_dictionary=False, compression="zstd", row_group_size=2 * ROWS)
    store = open_store(tmp_path)
    info = store.info(path.name)
    file = InputFile(name=path.name, size_bytes=info.size_bytes, etag=info.etag)
    span = FileSpan(0, 0, info.size_bytes)
    with counted_pool() as pool:
        (record,) = read_span(store, file, span, SETTINGS)
    assert (record.reason, record.lost_documents) == ("unreadable", 2 * ROWS)
    assert int(record.detail.split()[3]) > limit
    assert (pool.max_memory() or 0) < 1 << 20
    larger = SETTINGS.model_copy(update={"max_document_bytes": 4 * SETTINGS.max_document_bytes})
    assert len(list(read_span(store, file, span, larger))) == 2 * ROWS


@pytest.mark.parametrize("name", ["rows.parquet", "same.parquet", "lines.jsonl.gz", "text.txt"])
def test_large_documents_are_read_a_few_at_a_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".parquet":
        write_table(path, same=name == "same.parquet")
    elif path.suffix == ".txt":
        write_text(path)
    else:
        write_lines(path)
    store = open_store(tmp_path)
    info = store.info(name)
    file = InputFile(name=name, size_bytes=info.size_bytes, etag=info.etag)
    span = FileSpan(0, 0, info.size_bytes)
    tracemalloc.start()
    with counted_pool() as pool:
        count = sum(len(record.text) for record in read_span(store, file, span, SETTINGS))
    _, heap = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > ROWS * ROW_BYTES * 0.9
    assert (pool.max_memory() or 0) < ARROW_BYTES
    assert heap < HEAP_BYTES
