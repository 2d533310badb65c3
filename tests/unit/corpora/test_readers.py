"""Landed files to documents, and what is no document to a reason with its place."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.corpora.formats.base import FileSpan, Record
from perennial.corpora.formats.open import read_span
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.errors import InputMoved
from perennial.store import open_store

SETTINGS = IngestSettings(sequence_length=8, seed=0, max_document_bytes=1000)


def read(
    folder: Path,
    name: str,
    content: bytes,
    settings: IngestSettings = SETTINGS,
    cuts: tuple[int, ...] = (),
) -> list[Record]:
    """The records of a file, read in parts that begin at the cuts."""
    (folder / name).write_bytes(content)
    store = open_store(folder)
    info = store.info(name)
    file = InputFile(name=name, size_bytes=info.size_bytes, etag=info.etag)
    bounds = [0, *cuts, len(content)]
    spans = [FileSpan(0, a, b) for a, b in pairwise(bounds)]
    return [record for span in spans for record in read_span(store, file, span, settings)]


def lines(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def parquet(folder: Path, table: pa.Table, rows: int = 2) -> bytes:
    pq.write_table(table, folder / "made", row_group_size=rows)
    return (folder / "made").read_bytes()


def summary(records: list[Record]) -> list[tuple[int, str]]:
    return [(r.offset, r.reason or r.text.decode()) for r in records]


def test_json_lines_become_documents_with_their_byte_offsets(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + lines({"text": "été"}) + b"\n  \r\n" + lines({"text": "b"})[:-1]
    first = 3 + len(lines({"text": "été"})) + 5
    assert summary(read(tmp_path, "a.jsonl", content)) == [(0, "été"), (first, "b")]


def test_the_domain_comes_from_its_field(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"domain_field": "topic"})
    topics = ["Art", None, 7, 0, False]
    content = lines(*({"text": "a", "topic": topic} for topic in topics), {"text": "b"})
    records = read(tmp_path, "a.jsonl", content, settings)
    assert [record.domain for record in records] == ["Art", "", "7", "0", "False", ""]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "caf\xe9"}\n', "invalid-utf8"),
        (b'{"text": "\\ud800"}\n', "invalid-utf8"),
        (b'{"text": "half of a li\n', "invalid-json"),
        (b"[" * 100_000 + b"\n", "too-long"),
        (b"[" * 3_000 + b"\n", "invalid-json"),
        (b"1" * 3_000 + b"\n", "invalid-json"),
        (b'["text"]\n', "invalid-json"),
        (b'{"body": "x"}\n', "missing-text"),
        (b'{"text": null}\n', "missing-text"),
        (b'{"text": 5}\n', "text-not-string"),
        (b'{"text": ["x"]}\n', "text-not-string"),
        (b'{"text": " \\n"}\n', "empty-text"),
        (b'{"text": "' + b"x" * 1001 + b'"}\n', "too-long"),
        (b'{"text": "' + b"x" * 50_000_000 + b'"}\n', "too-long"),
    ],
)
def test_a_bad_line_is_set_aside_and_the_next_is_read(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    good = lines({"text": "good"})
    records = read(tmp_path, "a.jsonl", good + line + good)
    assert summary(records) == [(0, "good"), (len(good), reason), (len(good) + len(line), "good")]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.txt.zst"])
def test_compressed_files_read_like_plain_ones(tmp_path: Path, name: str) -> None:
    jsonl = "jsonl" in name
    text = lines({"text": "a"}, {"text": "b"}) if jsonl else b"a\n\nb\n"
    packed = gzip.compress(text) if name.endswith("gz") else pa.compress(text, "zstd").to_pybytes()
    plain = read(tmp_path, name.rpartition(".")[0], text)
    assert read(tmp_path, name, packed) == plain
    assert [r.text for r in plain] == [b"a", b"b"]


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_cut_off_compressed_file_keeps_what_came_before(tmp_path: Path, compression: str) -> None:
    text = b"".join(
        lines({"text": hashlib.sha256(str(i).encode()).hexdigest()}) for i in range(60_000)
    )
    whole = gzip.compress(text) if compression == "gz" else pa.compress(text, "zstd").to_pybytes()
    records = read(tmp_path, f"a.jsonl.{compression}", whole[: len(whole) // 2])
    *before, last = records
    assert last.reason == "truncated"
    assert 10_000 < len(before) < 50_000
    assert {record.reason for record in before} == {""}
    assert before[-1].offset < last.offset
    if compression == "gz":
        readable = zlib.decompressobj(31).decompress(whole[: len(whole) // 2])
        assert len(readable) - last.offset < 1 << 14


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_stored_bytes_that_were_not_read_for_damage_are_lost(tmp_path: Path, name: str) -> None:
    (record,) = read(tmp_path, name, b"not compressed" * 100_000)
    assert record.reason == "truncated"
    assert record.lost_bytes > 1_200_000


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_that_is_not_compressed_as_it_says_is_truncated(tmp_path: Path, name: str) -> None:
    (record,) = read(tmp_path, name, lines({"text": "plain"}))
    assert record.reason == "truncated"


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet", "a.jsonl.gz"])
def test_an_empty_file_is_reported(tmp_path: Path, name: str) -> None:
    assert summary(read(tmp_path, name, b"")) == [(0, "empty-file")]


def test_a_gzip_of_nothing_is_an_empty_file(tmp_path: Path) -> None:
    assert summary(read(tmp_path, "a.jsonl.gz", gzip.compress(b""))) == [(0, "empty-file")]


def test_an_unknown_format_is_lost_as_a_whole(tmp_path: Path) -> None:
    (record,) = read(tmp_path, "a.pdf", b"x,y\n")
    assert (record.reason, record.lost_bytes) == ("unknown-format", 4)


def test_paragraphs_of_a_text_file_are_documents(tmp_path: Path) -> None:
    content = b"\n\none\nmore\n\n \t\r\ntwo\r\n\r\nthree"
    expected = [(2, "one\nmore"), (16, "two"), (23, "three")]
    assert summary(read(tmp_path, "a.txt", content)) == expected


def test_a_text_file_can_be_one_document(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"txt_documents": "file"})
    records = read(tmp_path, "a.txt", b"\none\n\ntwo\n\n", settings)
    assert summary(records) == [(1, "one\n\ntwo")]


def test_bad_paragraphs_are_set_aside(tmp_path: Path) -> None:
    content = b"caf\xe9\n\n" + b"x\n" * 600 + b"\n" + b"y" * 9000 + b"\n\nlast\n"
    expected = [(0, "invalid-utf8"), (6, "too-long"), (1207, "too-long"), (10209, "last")]
    assert summary(read(tmp_path, "a.txt", content)) == expected


def test_parquet_rows_become_documents_with_their_row_numbers(tmp_path: Path) -> None:
    texts = ["a", None, "c", " ", "e" * 1001]
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table({"id": range(5), "text": pa.array(texts).cast(kind)})
        records = read(tmp_path, "a.parquet", parquet(tmp_path, table))
        expected = [(0, "a"), (1, "missing-text"), (2, "c"), (3, "empty-text"), (4, "too-long")]
        assert summary(records) == expected


def test_parquet_strings_that_are_not_utf8_are_set_aside(tmp_path: Path) -> None:
    forged = pa.Array.from_buffers(
        pa.string(), 1, pa.array([b"caf\xe9"], type=pa.binary()).buffers()
    )
    records = read(tmp_path, "a.parquet", parquet(tmp_path, pa.table({"text": forged})))
    assert summary(records) == [(0, "invalid-utf8")]


@pytest.mark.parametrize(
    "content",
    [b"this is no parquet file at all", b"PAR1" + b"x" * 40],
)
def test_a_file_that_is_not_parquet_is_lost_once(tmp_path: Path, content: bytes) -> None:
    (record,) = read(tmp_path, "a.parquet", content, cuts=(7, 20))
    assert (record.offset, record.reason, record.lost_bytes) == (0, "unreadable", len(content))


def test_a_parquet_file_without_the_text_column_is_lost_once(tmp_path: Path) -> None:
    content = parquet(tmp_path, pa.table({"body": ["a", "b", "c"]}))
    (record,) = read(tmp_path, "a.parquet", content, cuts=(100,))
    assert (record.reason, record.lost_bytes) == ("missing-text", len(content))
    assert "body" in record.detail


def test_a_damaged_row_group_costs_only_itself(tmp_path: Path) -> None:
    content = bytearray(parquet(tmp_path, pa.table({"text": [f"document {i}" for i in range(6)]})))
    begin = pq.read_metadata(tmp_path / "made").row_group(1).column(0).dictionary_page_offset
    content[begin : begin + 8] = bytes(8)
    records = read(tmp_path, "a.parquet", bytes(content))
    good = [r.text.decode() for r in records if not r.reason]
    assert good == ["document 0", "document 1", "document 4", "document 5"]
    (bad,) = (r for r in records if r.reason)
    assert (bad.offset, bad.reason) == (2, "unreadable")
    assert bad.lost_bytes > 0


def test_a_file_that_vanished_or_changed_is_noticed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write("a.jsonl", lines({"text": "a"}))
    listed = store.info("a.jsonl")
    file = InputFile(name="a.jsonl", size_bytes=listed.size_bytes, etag=listed.etag)
    span = FileSpan(3, 0, listed.size_bytes)
    reading = read_span(store, file, span, SETTINGS)
    assert next(reading).text == b"a"
    store.write("a.jsonl", lines({"text": "b"}))
    for records in (reading, read_span(store, file, span, SETTINGS)):
        with pytest.raises(InputMoved) as changed:
            list(records)
        assert (changed.value.file, changed.value.reason) == (3, "changed")
    store.remove("a.jsonl")
    with pytest.raises(InputMoved) as vanished:
        list(read_span(store, file, span, SETTINGS))
    assert vanished.value.reason == "vanished"


PROMISED = {
    "a.jsonl": lines(*({"text": f"document {i}"} for i in range(9))),
    "a.txt": b"one\n\ntwo\n\nthree\n",
    "a.jsonl.gz": gzip.compress(lines({"text": "a"}, {"text": "b"})) + b"\0" * 512,
    "a.txt.zst": pa.compress(b"a\n\nb\n", "zstd").to_pybytes(),
    "cut.jsonl.gz": gzip.compress(lines({"text": "a" * 99}, {"text": "b"}))[:-12],
    "a.parquet": b"",
}


@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.parametrize("cuts", [(), (9,)])
def test_I10_a_file_is_compared_with_the_digest_that_was_promised(
    tmp_path: Path, name: str, cuts: tuple[int, ...]
) -> None:
    """However it is read; what it held is another matter. No file but Parquet is read twice."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    content = PROMISED[name] or parquet(tmp_path, pa.table({"text": ["a", "b", "c"]}))
    cuts = cuts if name in ("a.jsonl", "a.parquet") else ()
    plain = read(folder, name, content, cuts=cuts)
    store, reads = open_store(folder), list[str]()

    class Counted(type(store)):  # type: ignore[misc]
        """Counts how often the file is opened."""

        def open(self, key: str, mode: str = "rb") -> object:
            reads.append(key)
            return super().open(key, mode)

    counted = Counted(store.url)
    bounds = [0, *cuts, len(content)]
    spans = [FileSpan(0, a, b) for a, b in pairwise(bounds)]

    def records(promised: bytes) -> list[Record]:
        info, sha256 = store.info(name), hashlib.sha256(promised).hexdigest()
        file = InputFile(name=name, size_bytes=info.size_bytes, etag=info.etag, sha256=sha256)
        return [record for span in spans for record in read_span(counted, file, span, SETTINGS)]

    reads.clear()
    assert records(content) == plain
    whole = len(spans) == 1 and name != "a.parquet"
    assert len(reads) == (1 if whole else len(spans) + 1)
    with pytest.raises(InputMoved) as moved:
        records(content + b"x")
    assert moved.value.reason == "changed"
    assert moved.value.actual == f"found sha256 {hashlib.sha256(content).hexdigest()}"


def test_the_same_bytes_written_again_are_the_promised_file(tmp_path: Path) -> None:
    store, content = open_store(tmp_path), lines({"text": "a"})
    store.write("a.jsonl", content)
    etag = store.info("a.jsonl").etag
    store.write("a.jsonl", content)
    assert store.info("a.jsonl").etag != etag
    file = InputFile(
        name="a.jsonl",
        size_bytes=len(content),
        etag=etag,
        sha256=hashlib.sha256(content).hexdigest(),
    )
    (record,) = read_span(store, file, FileSpan(0, 0, len(content)), SETTINGS)
    assert record.text == b"a"
