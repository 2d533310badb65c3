"""The commonest mistakes in files are named with what would be right."""

from __future__ import annotations

import bz2
import gzip
import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.corpora.formats.base import FileSpan, Record
from perennial.corpora.formats.open import read_span
from perennial.corpora.ingest.quality import account_losses, check_quality, keep_evidence
from perennial.corpora.ingest.read import ScatterJob, scatter_piece
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.store import open_store
from tests.support.refusal import refused

SETTINGS = IngestSettings(sequence_length=8, seed=0)
TEXT = "A sentence in English, and une phrase en français. " * 20
LINE = json.dumps({"text": TEXT}, ensure_ascii=False) + "\n"


def read(folder: Path, name: str, content: bytes, cut: int | None = None) -> list[Record]:
    """The records of a file, read in two parts where it is cut."""
    (folder / name).write_bytes(content)
    store = open_store(folder)
    info = store.info(name)
    file = InputFile(name=name, size_bytes=info.size_bytes, etag=info.etag)
    places = [0, len(content)] if cut is None else [0, cut, len(content)]
    spans = [FileSpan(0, a, b) for a, b in pairwise(places)]
    return [record for span in spans for record in read_span(store, file, span, SETTINGS)]


@pytest.mark.parametrize(
    ("encoding", "name", "argument"),
    [
        ("utf-16", "UTF-16-LE", "UTF-16"),
        ("utf-16-le", "UTF-16-LE", "UTF-16LE"),
        ("utf-16-be", "UTF-16-BE", "UTF-16BE"),
        ("utf-32", "UTF-32-LE", "UTF-32"),
    ],
)
@pytest.mark.parametrize("file", ["a.jsonl", "a.txt", "a.jsonl.gz"])
def test_a_file_of_wide_characters_is_lost_once_with_its_encoding(
    tmp_path: Path, file: str, encoding: str, name: str, argument: str
) -> None:
    data = (LINE * 9).encode(encoding)
    content = gzip.compress(data) if file.endswith(".gz") else data
    (record,) = read(tmp_path, file, content, 5000 if file == "a.jsonl" else None)
    assert (record.offset, record.reason, record.lost_bytes) == (0, "invalid-utf8", len(content))
    expected = f"not UTF-8: it reads as {name}; convert with iconv -f {argument} -t UTF-8"
    assert record.detail == expected


@pytest.mark.parametrize(
    ("encoding", "name"), [("latin-1", "ISO-8859-1"), ("cp1252", "WINDOWS-1252")]
)
@pytest.mark.parametrize("file", ["a.jsonl", "a.txt"])
def test_a_text_of_one_byte_a_character_names_the_encoding(
    tmp_path: Path, file: str, encoding: str, name: str
) -> None:
    text = TEXT.replace("and", "“and”") if encoding == "cp1252" else TEXT
    content = json.dumps({"text": text}, ensure_ascii=False) if file == "a.jsonl" else text
    (record,) = read(tmp_path, file, content.encode(encoding))
    assert record.reason == "invalid-utf8"
    assert f"it reads as {name}; convert with iconv -f {name} -t UTF-8" in record.detail


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode()[:-30] + b"\xff" + TEXT.encode(),  # damaged UTF-8
        "Это русский текст. ".encode("koi8-r") * 20,
        bytes(range(256)) * 4,
    ],
    ids=["damaged", "cyrillic", "binary"],
)
def test_no_encoding_is_named_that_does_not_fit(tmp_path: Path, content: bytes) -> None:
    records = [record for record in read(tmp_path, "a.txt", content) if record.reason]
    assert records
    assert {record.reason for record in records} == {"invalid-utf8"}
    assert all("iconv" not in record.detail for record in records)


def test_a_compressed_file_without_the_suffix_is_named(tmp_path: Path) -> None:
    (record,) = read(tmp_path, "a.jsonl", gzip.compress(LINE.encode()))
    assert record.detail == "not text: it is compressed; add .gz to its name"
    (record,) = read(tmp_path, "a.txt", bz2.compress(b"text"))
    assert record.detail == "not text: it is compressed; add .bz2 to its name"
    (record,) = read(tmp_path, "b.txt", b"BZhang said so.")
    assert record.text == b"BZhang said so."


def test_lines_that_end_with_cr_alone_are_named(tmp_path: Path) -> None:
    (record,) = read(tmp_path, "a.csv", b"text,id\rone,1\rtwo,2\r")
    assert record.detail == r"its lines end with CR alone; convert with tr '\r' '\n' < FILE > NEW"
    assert [record.text for record in read(tmp_path, "b.csv", b"text,id\r\none,1\r\n")] == [b"one"]


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (
            {"content": TEXT, "id": 7, "meta": {"a": 1}},
            "no field 'text'; its fields are content, id, meta; set corpora.text_field: content",
        ),
        (
            {"url": "https://example.org/" + "a" * 99, "raw": TEXT},
            "no field 'text'; its fields are url, raw; set corpora.text_field: raw",
        ),
        ({"input_ids": [1, 2]}, "no field 'text'; its fields are input_ids"),
        ({"id": "a1b2" * 20}, "no field 'text'; its fields are id"),
        ({}, "no field 'text'; its fields are none"),
    ],
)
def test_a_missing_field_is_named_with_the_one_that_holds_text(
    tmp_path: Path, value: dict[str, object], detail: str
) -> None:
    (record,) = read(tmp_path, "a.jsonl", json.dumps(value).encode())
    assert (record.reason, record.detail) == ("missing-text", detail)


def test_a_missing_column_is_named_with_the_largest_of_strings(tmp_path: Path) -> None:
    texts = [f"{i} {TEXT}" for i in range(5)]
    made = pa.table({"id": [str(i) for i in range(5)], "content": texts, "n": range(5)})
    pq.write_table(made, tmp_path / "made")
    (record,) = read(tmp_path, "a.parquet", (tmp_path / "made").read_bytes())
    expected = "no column 'text'; its columns are id, content, n; set corpora.text_field: content"
    assert (record.reason, record.detail, record.lost_documents) == ("missing-text", expected, 5)


def test_a_text_inside_another_field_is_named_by_its_path(tmp_path: Path) -> None:
    row = {"doc": {"text": TEXT, "url": "https://example.org/a"}, "id": 1}
    (record,) = read(tmp_path, "a.jsonl", json.dumps(row).encode())
    expected = "no field 'text'; its fields are doc, id; set corpora.text_field: doc.text"
    assert record.detail == expected
    pq.write_table(pa.Table.from_pylist([row] * 9), tmp_path / "b.parquet", use_dictionary=False)
    (record,) = read(tmp_path, "b.parquet", (tmp_path / "b.parquet").read_bytes())
    assert record.detail.endswith("its columns are doc, id; set corpora.text_field: doc.text")


def test_a_refusal_quotes_the_first_of_each_reason_and_keeps_the_records(tmp_path: Path) -> None:
    inbox, store = open_store(tmp_path / "inbox"), open_store(tmp_path / "store")
    body = json.dumps({"body": TEXT}).encode() + b"\n"
    inbox.write("a.jsonl", LINE.encode() + body * 1500)
    spoilt = b'{"text": "\\ud800"}\n{"\\ud800": 1}\nhalf a li\n'
    inbox.write("b.jsonl", spoilt)
    inputs = tuple(
        InputFile(name=i.key, size_bytes=i.size_bytes, etag=i.etag) for i in inbox.list("")
    )
    staging = store.sub("corpora/en/staging")
    job = ScatterJob(inbox, staging, inputs, SETTINGS, shards=1)
    pieces = [
        scatter_piece(job, n, (FileSpan(n, 0, file.size_bytes),)) for n, file in enumerate(inputs)
    ]
    account = account_losses(inputs, pieces)
    with refused("too-much-bad") as corpus:
        check_quality("inbox/en", "store/refused/en", inputs, SETTINGS, pieces, account)
    problem = corpus.value.problem
    place = f"1501 missing-text, the first in a.jsonl at {len(LINE.encode())}: no field 'text'"
    assert f"({place}; its fields are body; set corpora.text_field: body; " in problem
    place = f"1 invalid-json, the first in b.jsonl at {spoilt.index(b'half')}: Expecting value"
    assert place in problem
    assert "every record: store/refused/en/" in corpus.value.remedy
    store.write("refused/en/quarantine-00009.jsonl", b"of an earlier refusal")
    keep_evidence(store, staging, "en", len(pieces))
    kept = store.list("refused")
    assert [info.key for info in kept] == [
        f"refused/en/quarantine-{number:05d}.jsonl" for number in range(2)
    ]
    lines = b"".join(store.read(info.key) for info in kept).splitlines()
    records = [json.loads(line) for line in lines]
    # A piece keeps at most 1,000 records of a reason.
    assert [record["file"] for record in records] == ["a.jsonl"] * 1000 + ["b.jsonl"] * 3
    assert records[1001]["detail"] == "no field 'text'; its fields are \\xed\\xa0\\x80"
