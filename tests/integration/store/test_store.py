"""What a store does, the same in a local folder and in a bucket (I8)."""

from __future__ import annotations

import gc
import os
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from perennial.store import Store, open_store
from tests.support.s3_server import S3Server


@pytest.fixture
def store(any_store_url: str) -> Store:
    return open_store(any_store_url)


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_I8_read_returns_the_last_write(store: Store) -> None:
    store.write("a/b.bin", b"first")
    store.write("a/b.bin", b"")
    assert store.read("a/b.bin") == b""
    store.write("a/b.bin", b"\x00\xff")
    assert store.read("a/b.bin") == b"\x00\xff"


@pytest.mark.parametrize("key", ["absent", "absent/below", "folder", "folder/object/below"])
def test_I8_what_is_no_object_is_not_found(store: Store, tmp_path: Path, key: str) -> None:
    store.write("folder/object", b"x")
    assert not store.exists(key)
    copy = tmp_path / "copies" / "copy"
    for operation in (store.read, store.info, store.open):
        with pytest.raises(FileNotFoundError):
            operation(key)
    with pytest.raises(FileNotFoundError):
        store.download(key, copy)
    assert not list(tmp_path.glob("copies/*"))


def test_I8_the_first_create_wins_even_against_the_same_bytes(store: Store) -> None:
    assert store.create("ledger/0.json", b"same")
    assert not store.create("ledger/0.json", b"same")
    assert not store.create("ledger/0.json", b"other")
    assert store.read("ledger/0.json") == b"same"


def test_I8_create_loses_against_a_written_object_and_wins_after_its_removal(store: Store) -> None:
    store.write("lease", b"old")
    assert not store.create("lease", b"new")
    store.remove("lease")
    assert store.create("lease", b"new")
    assert store.read("lease") == b"new"


def test_I8_list_is_recursive_sorted_and_bounded_by_the_folder(store: Store) -> None:
    for key in ("b/2", "b/10", "b/1/x", "ba/1", "a", "b.txt", "b-1"):
        store.write(key, b"")
    assert keys(store) == sorted(["b/2", "b/10", "b/1/x", "ba/1", "a", "b.txt", "b-1"])
    assert keys(store, "b") == keys(store, "b/") == ["b/1/x", "b/10", "b/2"]
    assert keys(store, "absent") == []
    assert keys(store, "a") == []


def test_I8_keys_with_pattern_and_url_characters_are_taken_as_they_are(store: Store) -> None:
    odd = sorted(["a[0].txt", "a*", "a?", "a b+c%20d", "é#&=", "a:b"])
    for key in odd:
        assert store.create(key, key.encode())
    assert keys(store) == odd
    for key in odd:
        assert store.read(key) == key.encode()
        with store.open(key) as source:
            assert source.read() == key.encode()
    store.remove("a[0].txt")
    store.remove("a*")
    assert keys(store) == [key for key in odd if key not in ("a[0].txt", "a*")]


def test_I8_what_another_writer_adds_and_removes_shows_at_once(store: Store) -> None:
    filesystem, base = store.arrow()
    store.write("a/1", b"")
    assert keys(store) == ["a/1"]
    with filesystem.open_output_stream(f"{base}/a/2") as sink:
        sink.write(b"from arrow")
    assert keys(store) == ["a/1", "a/2"]
    assert store.read("a/2") == b"from arrow"
    filesystem.delete_file(f"{base}/a/1")
    assert keys(store) == ["a/2"]
    assert not store.exists("a/1")


def test_I8_info_tells_size_time_and_version(store: Store) -> None:
    store.write("a/1", b"12345")
    info = store.info("a/1")
    assert (info.key, info.size_bytes) == ("a/1", 5)
    assert info.modified.tzinfo is UTC
    assert abs(datetime.now(UTC) - info.modified) < timedelta(minutes=1)
    assert store.list() == [info]
    store.write("a/1", b"54321")
    assert store.info("a/1").etag != info.etag
    assert '"' not in info.etag


def test_I8_an_open_object_reads_at_any_place(store: Store) -> None:
    content = b"".join(b"%07d\n" % number for number in range(100_000))
    store.write("lines", content)
    with store.open("lines") as source:
        assert source.seekable()
        assert source.readline() == b"0000000\n"
        source.seek(-8, os.SEEK_END)
        assert source.read() == b"0099999\n"
        source.seek(400_000)
        assert source.tell() == 400_000
        assert source.read(8) == b"0050000\n"
        source.seek(0)
        assert sum(1 for _ in source) == 100_000


def test_I8_a_written_object_appears_on_close(store: Store) -> None:
    with store.open("a/1", "wb") as sink:
        sink.write(b"half ")
        sink.flush()
        assert keys(store) == []
        assert not store.exists("a/1")
        sink.write(b"whole")
    assert keys(store) == ["a/1"]
    assert store.read("a/1") == b"half whole"
    sink.close()


def test_I8_a_failed_write_leaves_the_old_object_and_nothing_else(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store.write("a/1", b"old")
    with pytest.raises(RuntimeError, match="writer failed"), store.open("a/1", "wb") as sink:
        sink.write(b"half")
        raise RuntimeError("writer failed")
    assert sink.closed
    assert store.read("a/1") == b"old"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ([Path(store.url, "a", "1")] if store.is_local else [])


def test_I8_a_writer_that_is_dropped_publishes_nothing_and_says_so(store: Store) -> None:
    sink = store.open("a/1", "wb")
    sink.write(b"half")
    with pytest.warns(ResourceWarning, match="never closed"):
        del sink
        gc.collect()
    assert keys(store) == []


def test_I8_large_files_go_up_and_come_down_unchanged(store: Store, tmp_path: Path) -> None:
    # Above 100 MiB an upload to S3 has parts; above 50 MiB so has a download.
    source, copy = tmp_path / "source", tmp_path / "new" / "copy"
    block = os.urandom(1 << 20)
    with source.open("wb") as sink:
        for number in range(104):
            sink.write(block[number:] + block[:number])
    store.upload(source, "big")
    assert store.info("big").size_bytes == 104 << 20
    store.download("big", copy)
    assert list(copy.parent.iterdir()) == [copy]
    with source.open("rb") as left, copy.open("rb") as right:
        while block := left.read(1 << 24):
            assert right.read(1 << 24) == block
        assert not right.read()


def test_I8_download_replaces_and_upload_of_nothing_fails(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(b"a longer old file")
    store.write("a", b"new")
    store.download("a", copy)
    assert copy.read_bytes() == b"new"
    for nothing in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileNotFoundError):
            store.upload(nothing, "b")
    assert keys(store) == ["a"]


def test_I8_remove_takes_an_object_or_a_folder_and_nothing_beside_it(store: Store) -> None:
    for key in ("a/1", "a/b/2", "a/manifest.json", "ab/1", "a.txt", "c"):
        store.write(key, b"")
    store.remove("absent/folder")
    store.remove("c")
    store.remove("c/below")
    assert keys(store) == ["a.txt", "a/1", "a/b/2", "a/manifest.json", "ab/1"]
    store.remove("a")
    assert keys(store) == ["a.txt", "ab/1"]
    assert store.create("a", b"the name is free for an object now")


def test_I8_a_sub_store_shares_the_objects(store: Store) -> None:
    below = store.sub("a/b")
    below.write("c", b"x")
    assert store.read("a/b/c") == b"x"
    assert keys(below) == ["c"]
    assert below.info("c").etag == store.info("a/b/c").etag


def test_I8_a_pickled_store_is_the_same_store(store: Store) -> None:
    store.write("a", b"x")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert hash(again) == hash(store)
    assert again.read("a") == b"x"


def test_I8_arrow_reads_parquet_that_the_store_wrote(store: Store) -> None:
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    rows = pa.table({"tokens": pa.array([os.urandom(512)] * 2000, pa.binary(512))})
    for number in range(2):
        with store.open(f"corpora/x/shard-{number}.parquet", "wb") as sink:
            pq.write_table(rows, sink, compression="none")
    filesystem, base = store.sub("corpora").arrow()
    assert pq.read_table(f"{base}/x/shard-1.parquet", filesystem=filesystem).equals(rows)
    assert ds.dataset(f"{base}/x", filesystem=filesystem).count_rows() == 4000
    with store.open("corpora/x/shard-0.parquet") as source:
        assert pq.read_table(source).equals(rows)


def test_I8_the_store_reads_parquet_that_arrow_wrote(store: Store) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.table({"tokens": pa.array([os.urandom(1 << 20)] * 12)})
    filesystem, base = pickle.loads(pickle.dumps(store.arrow()))
    # More than 10 MB: pyarrow uploads it to S3 in parts.
    filesystem.create_dir(f"{base}/out")
    pq.write_table(rows, f"{base}/out/a.parquet", filesystem=filesystem, use_dictionary=False)
    assert keys(store) == ["out/a.parquet"]
    with store.open("out/a.parquet") as source:
        assert pq.read_table(source).equals(rows)
    store.remove("out")
    assert filesystem.get_file_info(f"{base}/out").type.name == "NotFound"


def test_list_follows_every_page_of_a_bucket(s3_url: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    store = open_store(s3_url)
    wanted = [f"ledger/{number:012d}.json" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.write(key, b"{}"), wanted))
    assert keys(store, "ledger") == wanted


def test_the_whole_bucket_is_a_store_too(s3_url: str, s3_server: S3Server) -> None:
    store = open_store("/".join(s3_url.split("/")[:3]))
    assert store.create("a/1", b"x")
    assert keys(store) == ["a/1"]
    assert store.arrow()[0].get_file_info(f"{store.arrow()[1]}/a/1").size == 1
    store.remove("a")
    assert keys(store) == []
