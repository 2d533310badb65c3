"""Rows of corpora by their number: across shards and row groups, mapped and in ranges."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.corpora.packing import RowFile
from perennial.mixture.row_reader import CorpusLayout, RowReader
from perennial.store import Store, open_store

LENGTH = 8
ROW_BYTES = 2 * LENGTH
GROUPS = ((5, 5, 3), (1,), (4, 2), (5, 5, 5))
"""rows of the row groups of each shard"""


def row(number: int) -> list[int]:
    """What every test's row of that number holds."""
    return [number * LENGTH + i for i in range(LENGTH)]


def write_corpus(store: Store, name: str, first: int = 0, token_bytes: int = 2) -> CorpusLayout:
    """A corpus whose row n holds `row(first + n)`, written as an ingest writes it."""
    keys = []
    for shard, groups in enumerate(GROUPS):
        keys.append(f"corpora/{name}/shard-{shard:05d}.parquet")
        with store.open(keys[-1], "wb") as stream:
            file = RowFile(stream, LENGTH, token_bytes)
            for rows in groups:
                ids = [row(first + i) for i in range(rows)]
                file.write(np.array(ids, dtype=f"<u{token_bytes}"))
                first += rows
            size, digest = file.close()
        data = store.read(keys[-1])
        assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())
    return CorpusLayout(tuple(keys), tuple(sum(groups) for groups in GROUPS))


def numbers(*rows: int) -> npt.NDArray[np.int64]:
    return np.array(rows, dtype=np.int64)


def tokens(data: npt.NDArray[np.uint8]) -> list[list[int]]:
    found: list[list[int]] = data.view("<u2").tolist()
    return found


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def test_a_layout_locates_rows_on_both_sides_of_every_border() -> None:
    layout = CorpusLayout(("a", "b", "c"), (3, 1, 2))
    shards, inside = layout.locate(np.arange(6))
    assert shards.tolist() == [0, 0, 0, 1, 2, 2]
    assert inside.tolist() == [0, 1, 2, 0, 0, 1]
    assert layout.rows == 6


@pytest.mark.parametrize("outside", [-1, 6])
def test_a_row_that_the_corpus_does_not_have_is_refused(outside: int) -> None:
    with pytest.raises(IndexError, match="of a corpus of 6"):
        CorpusLayout(("a", "b", "c"), (3, 1, 2)).locate(numbers(0, outside))


def test_I8_any_range_of_rows_is_read_across_shards_and_row_groups(store: Store) -> None:
    layout = write_corpus(store, "a")
    reader = RowReader(store, {"a": layout}, ROW_BYTES)
    for first in range(0, layout.rows, 3):
        for last in range(first + 1, layout.rows + 1, 4):
            data = reader.read([("a", np.arange(first, last))])
            assert tokens(data) == [row(i) for i in range(first, last)]


def test_I8_corpora_are_read_one_after_the_other_with_wraps_and_holes(store: Store) -> None:
    layouts = {"a": write_corpus(store, "a"), "b": write_corpus(store, "b", first=100)}
    reader = RowReader(store, layouts, ROW_BYTES)
    end = layouts["a"].rows
    wrapped = numbers(end - 2, end - 1, 0, 1, 2, 12, 13, 14, 20, 19, 18)
    sparse = numbers(0, 9, 13, 13, 20, 10, 3, 4)
    data = reader.read([("b", sparse), ("a", wrapped)])
    assert tokens(data) == [row(100 + i) for i in sparse] + [row(i) for i in wrapped]


def test_rows_far_apart_are_not_read_through(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = write_corpus(local, "a")
    monkeypatch.setattr("perennial.mixture.row_reader._HOLE_BYTES", 2 * ROW_BYTES)
    reader = RowReader(local, {"a": layout}, ROW_BYTES)
    wanted = numbers(0, 1, 3, 12, 20, 33)
    assert tokens(reader.read([("a", wanted)])) == [row(i) for i in wanted]


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"max_rows_per_page": 3}])
def test_a_shard_whose_values_have_no_address_is_read_all_the_same(
    local: Store, tmp_path: Path, options: dict[str, str | int]
) -> None:
    values = np.array([row(i) for i in range(20)], dtype="<u2").tobytes()
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(ROW_BYTES), 20, [None, pa.py_buffer(values)]
    )
    path = tmp_path / "shard.parquet"
    pq.write_table(
        pa.table({"tokens": column}), path, row_group_size=8, use_dictionary=False, **options
    )
    local.upload(path, "shard.parquet")
    reader = RowReader(local, {"a": CorpusLayout(("shard.parquet",), (20,))}, ROW_BYTES)
    assert tokens(reader.read([("a", np.arange(3, 19))])) == [row(i) for i in range(3, 19)]


def test_a_shard_that_is_not_the_manifests_is_refused(local: Store) -> None:
    layout = write_corpus(local, "a")
    more = CorpusLayout(layout.keys, (14, *layout.shard_rows[1:]))
    with pytest.raises(ValueError, match="holds 13 rows of 16 bytes, its manifest states 14"):
        RowReader(local, {"a": more}, ROW_BYTES).read([("a", numbers(3))])
    with pytest.raises(ValueError, match="holds 0 rows of 32 bytes, its manifest states 13"):
        RowReader(local, {"a": layout}, 2 * ROW_BYTES).read([("a", numbers(3))])


def test_rows_of_a_few_bytes_have_addresses_too(local: Store) -> None:
    rows = np.arange(60_000, dtype="<u2").reshape(-1, 1)
    with local.open("shard.parquet", "wb") as stream:
        file = RowFile(stream, 1, 2)
        file.write(rows)
        file.close()
    (group,) = (pq.read_metadata(f"{local.url}/shard.parquet").row_group(i) for i in range(1))
    assert group.column(0).total_compressed_size < rows.nbytes + 32  # the header of one page
    reader = RowReader(local, {"a": CorpusLayout(("shard.parquet",), (60_000,))}, 2)
    wanted = [0, 19_999, 20_000, 59_999]
    assert reader.read([("a", numbers(*wanted))]).view("<u2").ravel().tolist() == wanted


def test_a_missing_shard_raises(store: Store) -> None:
    layout = write_corpus(store, "a")
    store.remove(layout.keys[1])
    with pytest.raises(FileNotFoundError):
        RowReader(store, {"a": layout}, ROW_BYTES).read([("a", np.arange(layout.rows))])


def test_I8_ids_of_16_bits_are_widened_beside_ids_of_32(store: Store) -> None:
    narrow, wide = write_corpus(store, "a"), write_corpus(store, "b", first=100, token_bytes=4)
    layouts = {"a": replace(narrow, row_bytes=ROW_BYTES), "b": wide}
    reader = RowReader(store, layouts, 2 * ROW_BYTES)
    wanted = numbers(0, 1, 14, 3, 33)
    data = reader.read([("a", wanted), ("b", wanted[::-1]), ("a", numbers(2))])
    expected = [*(row(i) for i in wanted), *(row(100 + i) for i in wanted[::-1]), row(2)]
    assert data.view("<u4").tolist() == expected
