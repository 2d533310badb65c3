"""JSON values, tables, archives and crawls: what their formats read, and what they set aside."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from perennial.corpora.formats import arrow, json_values
from perennial.corpora.formats.base import FORMATS, Record
from perennial.corpora.formats.open import find_companions, find_kind, read_evaluation_texts
from perennial.corpora.manifest import IngestSettings
from tests.support.read_files import read_file, summary

SETTINGS = IngestSettings(sequence_length=8, seed=0, max_document_bytes=1000, domain_field="url")
TEXTS = ["one", 'two\nlines, "quoted"', "été 漢字 👩‍👩‍👧", '[{\\"}]', "\t last"]
ROWS = [{"url": f"u{i}", "text": text} for i, text in enumerate(TEXTS)]


def write_csv(delimiter: str = ",", end: str = "\r\n") -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, ["url", "text"], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return sink.getvalue().encode()


def write_ipc(make: Callable[..., pa.ipc.RecordBatchStreamWriter], rows: int = 2) -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


def write_feather() -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), sink, chunksize=2)
    return sink.getvalue()


def write_tar(*members: tuple[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def write_record(kind: str, text: str, *fields: str) -> bytes:
    body = text.encode()
    head = ["WARC/1.0", f"WARC-Type: {kind}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*head, "", ""]).encode() + body + b"\r\n\r\n"


def json_lines() -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)


WET = write_record("warcinfo", "software: a crawler") + b"".join(
    write_record("conversion", row["text"], f"URL: {row['url']}") for row in ROWS
)
SOUND = {
    "lines.json": json_lines(),
    "a.ndjson": json_lines(),
    "array.json": json.dumps(ROWS).encode(),
    "pretty.json": b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "objects.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    "a.csv": write_csv(),
    "bom.csv": b"\xef\xbb\xbf" + write_csv(end="\n"),
    "semicolons.csv": write_csv(";"),
    "a.tsv": write_csv("\t"),
    "stream.arrow": write_ipc(pa.ipc.new_stream),
    "file.arrow": write_ipc(pa.ipc.new_file),
    "a.feather": write_feather(),
    "samples.tar": write_tar(
        *(
            member
            for i, row in enumerate(ROWS)
            for member in (
                (f"./{i}.txt", row["text"].encode()),
                (f"./{i}.json", json.dumps({"url": row["url"]}).encode()),
                (f"./{i}.jpg", b"pixels"),
            )
        )
    ),
    "objects.tar": write_tar(*((f"{i}.json", json.dumps(r).encode()) for i, r in enumerate(ROWS))),
    "lines.tar": write_tar(("._a.jsonl", b"x"), ("a.jsonl", json_lines())),
    "a.warc.wet": WET,
    "a.warc": WET,
}


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_a_sound_file_gives_its_documents_in_order(
    tmp_path: Path, name: str, compression: str
) -> None:
    content = SOUND[name]
    if compression == ".gz":
        content = gzip.compress(content)
    elif compression:
        content = pa.compress(content, "zstd").to_pybytes()
    records = read_file(tmp_path / f"{name}{compression}", SETTINGS, content)
    assert [(r.text.decode(), r.domain, r.reason) for r in records] == [
        (row["text"], row["url"], "") for row in ROWS
    ]
    offsets = [record.offset for record in records]
    assert all(a < b for a, b in pairwise(offsets))


@pytest.mark.parametrize("name", [n for n in SOUND if n.endswith("json")])
def test_parts_of_a_json_file_hold_each_document_once(tmp_path: Path, name: str) -> None:
    whole = read_file(tmp_path / name, SETTINGS, SOUND[name])
    for cut in range(1, len(SOUND[name]), 7):
        assert read_file(tmp_path / name, SETTINGS, cuts=(cut,)) == whole


@pytest.mark.parametrize("name", ["array.json", "pretty.json", "objects.json"])
def test_a_value_may_be_cut_anywhere_by_the_reads(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_file(tmp_path / name, SETTINGS, SOUND[name])
    stored = SOUND[name].removeprefix(b"\xef\xbb\xbf")
    shift = len(SOUND[name]) - len(stored)
    for record in whole:
        assert stored[record.offset - shift :].startswith(b"{")
    for size in (1, 2, 3, 5, 17):
        monkeypatch.setattr(json_values, "_CHUNK_BYTES", size)
        assert read_file(tmp_path / name, SETTINGS) == whole


def test_bad_values_of_an_array_cost_themselves_alone(tmp_path: Path) -> None:
    long = json.dumps({"text": "x" * 5000})
    content = f'[{{"text": "a"}}, 7, {{"body": 1}}, {{"text" "b"}},\n{long}, {{"text": "c"}}]\n'
    assert summary(read_file(tmp_path / "a.json", SETTINGS, content.encode())) == [
        (1, "a"),
        (16, "invalid-json"),
        (19, "missing-text"),
        (32, "invalid-json"),
        (46, "too-long"),
        (46 + len(long) + 2, "c"),
    ]


@pytest.mark.parametrize(
    "tail", ['[{"text": "a"}, {"text": "b', '[{"text": "a"},', '[{"text": "a"}']
)
def test_an_array_without_its_end_is_noted(tmp_path: Path, tail: str) -> None:
    *before, last = read_file(tmp_path / "a.json", SETTINGS, tail.encode())
    assert (last.reason, last.detail) == ("invalid-json", "the file ends inside its array")
    assert [record.text for record in before] == [b"a"] * ("," in tail)
    assert last.lost_bytes == len(tail) - last.offset


def test_a_broken_first_line_leaves_json_lines_what_they_are(tmp_path: Path) -> None:
    content = b'{"text": "half of a li\n{"text": "b"}\n'
    assert summary(read_file(tmp_path / "a.json", SETTINGS, content)) == [
        (0, "invalid-json"),
        (23, "b"),
    ]


def test_memory_does_not_grow_with_a_json_array(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("w") as sink:
        sink.write("[" + ",".join(json.dumps({"text": "x" * 900}) for _ in range(20_000)) + "]")
    settings = SETTINGS.model_copy(update={"max_document_bytes": 10_000})
    tracemalloc.start()
    try:
        kind = find_kind("a.json")
        assert kind is not None
        with (tmp_path / "a.json").open("rb") as stream:
            texts = read_evaluation_texts(stream, kind, 1, settings)
            assert sum(1 for _ in texts) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_in_json_lines_says_where_it_is_read(
    tmp_path: Path, name: str, indent: int | None
) -> None:
    content = json.dumps(ROWS, indent=indent).encode()
    stored = gzip.compress(content) if name.endswith("gz") else content
    first = read_file(tmp_path / name, SETTINGS, stored)[0]
    assert first.reason == "invalid-json"
    assert first.detail.endswith("are read from a file named .json")


def test_bad_rows_of_a_table_are_set_aside_with_what_is_wrong(tmp_path: Path) -> None:
    content = (
        b"url,text\n"
        b"u,good\n"
        b"u,not quoted, with a comma\n"
        b"u\n"
        b'u,"said "hello" twice"\n'
        b"\n"
        b"u,caf\xe9\n"
        b"u,\n"
        b"u," + b"x" * 5000 + b"\n"
        b"u,last\n"
    )
    records = read_file(tmp_path / "a.csv", SETTINGS, content)
    assert [r.reason or r.text.decode() for r in records] == [
        "good",
        "invalid-row",
        "invalid-row",
        "invalid-row",
        "invalid-utf8",
        "empty-text",
        "too-long",
        "last",
    ]
    assert [content[r.offset :].partition(b"\n")[0][:6] for r in records[:3]] == [
        b"u,good",
        b"u,not ",
        b"u",
    ]
    assert "3 fields instead of 2" in records[1].detail
    assert "double the quotes" in records[3].detail


def test_a_quote_without_its_end_loses_what_it_took_and_no_more(tmp_path: Path) -> None:
    lost = b'u,"no end\n' + b"u,row\n" * 1000
    content = b"url,text\nu,good\n" + lost
    good, bad, *after = read_file(tmp_path / "a.csv", SETTINGS, content)
    assert (good.text, bad.reason) == (b"good", "too-long")
    assert sum(len(b"u,row\n") for _ in after) + bad.lost_bytes == len(lost)
    assert {record.text for record in after} == {b"row"}
    (_, at_the_end) = read_file(tmp_path / "b.csv", SETTINGS, content[:200])
    assert (at_the_end.reason, at_the_end.lost_bytes) == ("invalid-row", 200 - 16)


@pytest.mark.parametrize("header", [b"body,url\n", b"text,text\n", b"\n"])
def test_a_table_without_one_column_of_text_is_lost_as_a_whole(
    tmp_path: Path, header: bytes
) -> None:
    content = header + b"a,b\n"
    (record,) = read_file(tmp_path / "a.csv", SETTINGS, content)
    assert (record.reason, record.lost_bytes) == ("missing-text", len(content))
    assert "no single column 'text' among" in record.detail


def test_a_table_of_no_rows_is_empty(tmp_path: Path) -> None:
    assert summary(read_file(tmp_path / "a.csv", SETTINGS, b"url,text\r\n")) == [(0, "empty-file")]
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema([("text", pa.string())])):
        pass
    assert summary(read_file(tmp_path / "a.arrow", SETTINGS, sink.getvalue())) == [
        (0, "empty-file")
    ]
    assert summary(read_file(tmp_path / "a.tar", SETTINGS, write_tar())) == [(0, "empty-file")]
    assert summary(read_file(tmp_path / "a.wet", SETTINGS, b"\r\n\r\n")) == [(0, "empty-file")]


@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file])
def test_a_cut_arrow_file_keeps_the_batches_before(
    tmp_path: Path, make: Callable[..., pa.ipc.RecordBatchStreamWriter]
) -> None:
    content = write_ipc(make, rows=1)
    whole = read_file(tmp_path / "a.arrow", SETTINGS, content)
    for cut in range(8, len(content) - 8, 8):
        records = read_file(tmp_path / "b.arrow", SETTINGS, content[:cut])
        good = [record for record in records if not record.reason]
        assert good == whole[: len(good)]
        assert len(records) == len(good) + 1 or (
            len(good) == len(whole) and make is pa.ipc.new_file
        )


def test_an_arrow_batch_that_does_not_fit_is_refused_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "LARGEST_BATCH_BYTES", 1 << 20)
    sink, table = io.BytesIO(), pa.table({"text": ["x" * 900] * 5000})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.slice(0, 100))
        writer.write_table(table)
    *good, bad = read_file(tmp_path / "a.arrow", SETTINGS, sink.getvalue())
    assert len(good) == 100
    assert bad.reason == "unreadable"
    assert bad.detail.endswith("write batches of 1 MiB at most")
    assert bad.lost_bytes > 4_400_000


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (b"FEA1" + bytes(40), "unreadable", "Feather version 1"),
        (b"no arrow file", "unreadable", ""),
        (write_ipc(pa.ipc.new_stream)[:100], "unreadable", ""),
    ],
)
def test_a_file_that_is_not_arrow_is_lost_once(
    tmp_path: Path, content: bytes, reason: str, words: str
) -> None:
    (record,) = read_file(tmp_path / "a.feather", SETTINGS, content)
    assert record.reason == reason
    assert words in record.detail
    assert record.lost_bytes > 0


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_dotted_field_is_a_column_of_that_name_or_a_field_of_a_struct(
    tmp_path: Path, suffix: str
) -> None:
    rows: list[dict[str, object]] = [
        {"doc": {"text": "inner", "id": 1}},
        {"doc": {"text": None, "id": 2}},
        {"doc": None},
    ]

    def write(table: pa.Table) -> Path:
        path = tmp_path / f"a.{suffix}"
        if suffix == "parquet":
            pq.write_table(table, path)
        else:
            pyarrow.feather.write_feather(table, path)
        return path

    settings = SETTINGS.model_copy(update={"text_field": "doc.text", "domain_field": "doc.id"})
    records = read_file(write(pa.Table.from_pylist(rows)), settings)
    assert [record.reason or record.text.decode() for record in records] == [
        "inner",
        "missing-text",
        "missing-text",
    ]
    assert records[0].domain == "1"
    table = pa.Table.from_pylist([row | {"doc.text": "literal"} for row in rows])
    records = read_file(write(table), settings)
    assert [record.text for record in records] == [b"literal"] * 3


def test_a_dotted_field_of_json_is_literal_first(tmp_path: Path) -> None:
    rows = [
        {"doc": {"text": "inner", "meta": {"id": "d"}}},
        {"doc": {"text": "inner"}, "doc.text": "literal"},
        {"doc": "text"},
        {"doc": {"body": "x"}},
    ]
    settings = SETTINGS.model_copy(update={"text_field": "doc.text", "domain_field": "doc.meta.id"})
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    records = read_file(tmp_path / "a.jsonl", settings, content)
    expected = ["inner", "literal", "missing-text", "missing-text"]
    assert [record.reason or record.text.decode() for record in records] == expected
    assert records[0].domain == "d"


def test_samples_without_text_and_long_members_are_set_aside(tmp_path: Path) -> None:
    content = write_tar(
        ("images/0.jpg", b"pixels"),
        ("images/0.cls", b"7"),
        ("a.txt", b"y" * 5000),
        ("b.txt", b"first\n"),
        ("b.txt", b"second"),
        ("c.json", b'{"text": 5}'),
        (".hidden/d.txt", b"no"),
        ("e.txt", b"caf\xe9"),
    )
    records = read_file(tmp_path / "a.tar", SETTINGS, content)
    assert [record.reason or record.text.decode() for record in records] == [
        "missing-text",
        "too-long",
        "first",
        "second",
        "text-not-string",
        "invalid-utf8",
    ]
    assert "images/0 has .jpg, .cls" in records[0].detail


def test_a_damaged_archive_keeps_what_came_before(tmp_path: Path) -> None:
    members = [(f"{i}.txt", f"document {i}".encode()) for i in range(9)]
    content = write_tar(*members)
    damaged = content[: 4 * 1024] + b"\xff" * 512 + content[4 * 1024 + 512 :]
    cases = {"damaged": damaged, "cut": content[: 4 * 1024 + 515], "blocks": content[: 4 * 1024]}
    for name, stored in cases.items():
        *good, bad = read_file(tmp_path / f"{name}.tar", SETTINGS, stored)
        assert [record.text for record in good] == [data for _, data in members[: len(good)]]
        assert len(good) == 4
        assert bad.reason == "unreadable"
    lines = write_tar(("a.jsonl", json_lines()))
    *good, bad = read_file(tmp_path / "lines.tar", SETTINGS, lines[:1024] + b"\xff" * 512)
    assert (len(good), bad.reason, bad.lost_bytes) == (len(ROWS), "unreadable", 512)
    packed = gzip.compress(content)
    (cut,) = read_file(tmp_path / "a.tar.gz", SETTINGS, packed[: len(packed) // 2])
    assert cut.reason == "truncated"


@pytest.mark.parametrize("padding", [b"", bytes(100), bytes(5000)])
def test_archives_behind_each_other_are_read(tmp_path: Path, padding: bytes) -> None:
    content = write_tar(("a.txt", b"one")) + write_tar(("b.txt", b"two")) + padding
    records = read_file(tmp_path / "a.tar", SETTINGS, content)
    assert summary(records) == [(0, "one"), (10240, "two")]
    *_, bad = read_file(tmp_path / "b.tar", SETTINGS, content + b"other bytes" * 99)
    assert (bad.reason, bad.lost_bytes > 1000) == ("unreadable", True)


def test_what_a_header_only_promises_is_not_made(tmp_path: Path) -> None:
    sparse = tarfile.TarInfo("a.jsonl")
    sparse.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"  # 8 GiB of zeros
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    records = read_file(tmp_path / "a.tar", SETTINGS, bytes(header) + bytes(1024))
    assert [(r.reason, r.detail[:7]) for r in records] == [("unreadable", "a.jsonl")]
    long = tarfile.TarInfo("name")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 20 << 20
    content = gzip.compress(long.tobuf(tarfile.GNU_FORMAT) + bytes(long.size))
    (tmp_path / "b.tar.gz").write_bytes(content)
    tracemalloc.start()
    (record,) = read_file(tmp_path / "b.tar.gz", SETTINGS)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert record.reason == "unreadable"
    assert "of 20971520 bytes" in record.detail


def test_pages_of_a_crawl_are_set_aside_and_records_about_others_passed_over(
    tmp_path: Path,
) -> None:
    content = (
        write_record("warcinfo", "x")
        + write_record("request", "GET /")
        + write_record("response", "HTTP/1.1 200 OK\r\n\r\n<html>")
        + write_record("conversion", "z" * 2000)
        + b"junk between records\r\n"
        + write_record("conversion", "text")
        + write_record("conversion", "cut off")[:-6]
    )
    records = read_file(tmp_path / "a.warc", SETTINGS, content)
    assert [record.reason or record.text.decode() for record in records] == [
        "missing-text",
        "too-long",
        "unreadable",
        "text",
        "unreadable",
    ]
    assert "WET" in records[0].detail
    assert records[2].lost_bytes == len(b"junk between records\r\n")
    assert content[records[3].offset :].startswith(b"WARC/1.0\r\nWARC-Type: conversion")


@pytest.mark.parametrize("length", [5, 100])
def test_a_text_that_has_another_length_than_it_says_is_no_document(
    tmp_path: Path, length: int
) -> None:
    wrong = write_record("conversion", "a longer text").replace(b"13", b"%d" % length)
    content = WET + wrong + WET + write_record("conversion", "x")[:-4]
    records = read_file(tmp_path / "a.warc", SETTINGS, content)
    assert {record.reason for record in records} == {"", "unreadable"}
    assert {record.text.decode() for record in records} - {""} == {*TEXTS, "x"}


def test_members_of_a_gzip_file_are_records_of_one_archive(tmp_path: Path) -> None:
    packed = b"".join(gzip.compress(write_record("conversion", text)) for text in TEXTS)
    records = read_file(tmp_path / "a.warc.wet.gz", SETTINGS, packed)
    assert [record.text.decode() for record in records] == TEXTS


def test_a_text_file_can_be_a_document_a_line(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"txt_documents": "line"})
    content = b"\xef\xbb\xbfone\r\n\n \ntwo words\n" + b"x" * 1001 + b"\n" + b"y" * 9000 + b"\nlast"
    assert summary(read_file(tmp_path / "a.txt", settings, content)) == [
        (0, "one"),
        (11, "two words"),
        (21, "too-long"),
        (1023, "too-long"),
        (10024, "last"),
    ]


def test_files_beside_a_dataset_hold_no_documents() -> None:
    names = [
        "dataset_dict.json",
        "train/data-00000-of-00001.arrow",
        "train/state.json",
        "train/dataset_info.json",
        "train/cache-0123456789abcdef.arrow",
        "other/state.json",
        "other/cache-1.arrow",
    ]
    assert find_companions(names) == set(names[:1] + names[2:5])
    assert find_companions(["state.json", "data.jsonl"]) == frozenset()


def test_a_saved_dataset_is_read_without_what_lies_beside(tmp_path: Path) -> None:
    """As `datasets.save_to_disk` writes it."""
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "saved"))
    names = [path.name for path in (tmp_path / "saved").iterdir()]
    (data,) = set(names) - find_companions(names)
    records = read_file(tmp_path / "saved" / data, SETTINGS)
    assert [record.text.decode() for record in records] == TEXTS


@pytest.mark.parametrize("key", list(FORMATS))
def test_every_format_takes_what_is_no_file_of_it(tmp_path: Path, key: str) -> None:
    """Whatever the bytes are, there are records with reasons and no exception."""
    hostile = [b"\0" * 3000, b"\xff" * 3000, b"[" * 3000, b'"' * 3000, b"{" * 3000, b"\n" * 3000]
    hostile += [b"WARC/1.0\r\n" * 9, b"PAR1PAR1", b"ARROW1\0\0" + b"\xff" * 64, b'text\n"' * 9]
    for suffix in FORMATS[key].suffixes:
        for content in hostile:
            records: list[Record] = read_file(tmp_path / f"a{suffix}", SETTINGS, content)
            assert all(record.reason or record.text for record in records)
