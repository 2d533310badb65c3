"""Whatever a file holds or is called, reading it ends in records; only the storage may fail."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard

from perennial.corpora import check_landed, read_landed, record_list
from perennial.corpora.formats import arrow
from perennial.corpora.formats.base import FileFormat, FilePart, FileSpan, Record
from perennial.corpora.formats.jsonl import JsonLinesFormat
from perennial.corpora.formats.open import read_span
from perennial.corpora.ingest.partition import plan_pieces
from perennial.corpora.ingest.quality import account_losses
from perennial.corpora.ingest.read import PieceResult, ScatterJob, scatter_piece
from perennial.corpora.ingest.sample import list_inputs, sample_texts
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.store import LocalStore, Store, open_store
from tests.support.read_files import read_file

SETTINGS = IngestSettings(sequence_length=8, seed=0, piece_bytes=7000, domain_field="domain")
TEXTS = [text[:400] for text in topics.values()][:40]


def table(**options: Any) -> bytes:
    columns = {"text": pa.array(TEXTS), "domain": pa.array(["a", "b"] * 20).dictionary_encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=10, **options)
    return bytes(sink.getvalue().to_pybytes())


def stream() -> bytes:
    sink = io.BytesIO()
    columns = pa.table({"text": TEXTS})
    with pa.ipc.new_stream(sink, columns.schema) as writer:
        writer.write_table(columns, max_chunksize=10)
    return sink.getvalue()


def pack(*members: tuple[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def page(text: bytes) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {len(text)}\r\n\r\n"
    return head.encode() + text + b"\r\n\r\n"


LINES = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS)
SOUND: dict[str, bytes] = {
    "plain.jsonl": LINES,
    "plain.txt": "\n\n".join(TEXTS).encode(),
    "lines.jsonl.gz": gzip.compress(LINES),
    "members.jsonl.gz": gzip.compress(LINES[:5000]) + gzip.compress(LINES[5000:]),
    "lines.jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress(LINES),
    "lines.jsonl.bz2": bz2.compress(LINES),
    "lines.jsonl.xz": lzma.compress(LINES),
    "text.txt.zst": zstandard.compress("\n\n".join(TEXTS).encode()),
    "snappy.parquet": table(),
    "plain.parquet": table(compression="none", use_dictionary=False),
    "array.json": json.dumps([{"text": text} for text in TEXTS]).encode(),
    "rows.csv": b"text\n" + b"".join(b'"%s"\n' % t.replace('"', '""').encode() for t in TEXTS),
    "batches.arrow": stream(),
    "batches.arrow.gz": gzip.compress(stream()),
    "crawl.wet": b"".join(page(text.encode()) for text in TEXTS),
    "crawl.wet.gz": b"".join(gzip.compress(page(text.encode())) for text in TEXTS),
    "lines.tar": pack(("a.jsonl", LINES), ("b.jsonl", LINES)),
    "lines.tar.gz": gzip.compress(pack(("a.jsonl", LINES), ("b.jsonl", LINES))),
    "samples.tar": pack(*((f"{i}.txt", text.encode()) for i, text in enumerate(TEXTS))),
    "pages.parquet": table(compression="zstd", data_page_version="2.0", write_page_index=True),
}


def spoil(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, remove or overwrite some of the bytes."""
    spoilt = bytearray(data)
    for _ in range(rng.choice([1, 1, 3])):
        place = rng.randrange(len(spoilt) or 1)
        size = rng.choice([1, 4, 100])
        match rng.randrange(6):
            case 0:
                spoilt[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                del spoilt[place:]
            case 2:
                spoilt[place:place] = spoilt[place : place + size]
            case 3:
                del spoilt[place : place + size]
            case 4:
                spoilt[place : place + size] = rng.randbytes(size)
            case 5:  # the end, where footers and checksums are
                place = max(0, len(spoilt) - rng.randrange(1, 400))
                spoilt[place : place + 1] = bytes([rng.randrange(256)])
    return bytes(spoilt)


def make_job(inbox: Store, folder: Path, settings: IngestSettings = SETTINGS) -> ScatterJob:
    inputs = tuple(
        InputFile(name=i.key, size_bytes=i.size_bytes, etag=i.etag) for i in inbox.list("")
    )
    return ScatterJob(inbox, open_store(folder / "staging"), inputs, settings, shards=2)


def scatter(job: ScatterJob) -> list[PieceResult]:
    pieces = plan_pieces(job.inputs, job.settings.piece_bytes)
    return [scatter_piece(job, index, piece) for index, piece in enumerate(pieces)]


@pytest.mark.parametrize("name", SOUND)
def test_I5_a_spoilt_file_gives_records_and_no_traceback(tmp_path: Path, name: str) -> None:
    inbox, rng = open_store(tmp_path / "inbox"), random.Random(name)
    for number in range(10):
        inbox.write(f"{number:03d}-{name}", spoil(SOUND[name], rng))
    job = make_job(inbox, tmp_path)
    results = scatter(job)
    account = account_losses(job.inputs, results)
    assert all((loss.lost_documents or 0) <= 10_000 for loss in account.losses)
    assert sum(piece.documents for piece in results) >= len(job.inputs)
    for number, file in enumerate(job.inputs):
        span = FileSpan(number, 0, file.size_bytes)
        records = list(read_span(inbox, file, span, SETTINGS))
        assert records == list(read_span(inbox, file, span, SETTINGS))
        places = [record.offset for record in records if not record.is_loss]
        assert places == sorted(set(places))


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_a_loss_that_lies_before_what_was_read_is_met_once(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a format that learns behind a part that it was not sound."""
    inbox = open_store(tmp_path / "inbox")
    inbox.write(f"a.jsonl{compression}", gzip.compress(LINES) if compression else LINES)
    loss = Record(1500, reason="unreadable", detail="seen late", lost_bytes=9)
    plain = JsonLinesFormat.read

    def read(form: FileFormat, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        yield from plain(cast(JsonLinesFormat, form), part, settings)
        yield loss

    monkeypatch.setattr(JsonLinesFormat, "read", read)
    job = make_job(inbox, tmp_path, SETTINGS.model_copy(update={"piece_bytes": 1 << 20}))
    (result,) = scatter(job)
    before = sum(at < 1500 for at in accumulate(map(len, LINES.splitlines(True)[:-1]), initial=0))
    assert result.documents - 1 <= before
    assert [(known.offset, known.lost_bytes) for known in result.losses] == [(1500, 9)]


@pytest.mark.parametrize("indexes", [False, True])
@pytest.mark.parametrize(("before", "behind"), [(1, 1), (1, 30), (30, 1)])
def test_the_second_of_two_parquet_files_in_one_is_not_taken_for_the_first(
    tmp_path: Path, before: int, behind: int, indexes: bool
) -> None:
    files = []
    for times in (before, behind):
        sink = io.BytesIO()
        rows = pa.table({"text": [f"{i} {text}" for i in range(times) for text in TEXTS]})
        pq.write_table(rows, sink, write_page_index=indexes, compression="none")
        files.append(sink.getvalue())
        assert len(read_file(tmp_path / "a.parquet", SETTINGS, files[-1])) == times * len(TEXTS)
    (record,) = read_file(tmp_path / "a.parquet", SETTINGS, b"".join(files))
    assert record.reason == "unreadable"
    assert "land each as a file of its own" in record.detail


def test_a_zstd_dictionary_is_named(tmp_path: Path) -> None:
    dictionary = zstandard.train_dictionary(4096, [text.encode() for text in topics.values()])
    data = zstandard.ZstdCompressor(dict_data=dictionary).compress(LINES)
    (record,) = read_file(tmp_path / "a.jsonl.zst", SETTINGS, data)
    assert (record.reason, record.lost_bytes) == ("truncated", len(data))
    assert f"dictionary {dictionary.dict_id()}, which is not in the file" in record.detail


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("is_dictionary", [False, True])
def test_an_arrow_batch_is_not_made_as_large_as_its_file_promises(
    tmp_path: Path, compression: str, is_dictionary: bool
) -> None:
    text = pa.array(["a" * (9 << 20), "b"])
    table = pa.table({"text": text.dictionary_encode() if is_dictionary else text})
    pyarrow.feather.write_feather(table, tmp_path / "a.arrow", compression=compression)
    assert (tmp_path / "a.arrow").stat().st_size < 1 << 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow, "LARGEST_BATCH_BYTES", 8 << 20)
        (record,) = read_file(tmp_path / "a.arrow", SETTINGS)
    assert (record.reason, record.detail[:14]) == ("unreadable", "a batch of 943")
    assert [len(r.text) for r in read_file(tmp_path / "a.arrow", SETTINGS)] == [0, 1]


@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file])
def test_what_stands_behind_an_arrow_table_is_noted(tmp_path: Path, make: Any) -> None:
    sink = io.BytesIO()
    with make(sink, pa.schema([("text", pa.string())])) as writer:
        writer.write_table(pa.table({"text": TEXTS}))
    *good, bad = read_file(tmp_path / "a.arrow", SETTINGS, sink.getvalue() * 2)
    assert [record.text.decode() for record in good] == TEXTS
    assert (bad.reason, bad.offset) == ("unreadable", len(TEXTS))
    assert len(sink.getvalue()) <= bad.lost_bytes <= len(sink.getvalue()) + 500
    padded = read_file(tmp_path / "b.arrow", SETTINGS, sink.getvalue() + bytes(4096))
    assert [record.reason for record in padded] == [""] * len(TEXTS)


def test_two_columns_of_one_name_are_a_reason(tmp_path: Path) -> None:
    column = pa.array(TEXTS)
    twice = pa.Table.from_arrays([column, column], names=["text", "text"])
    (record,) = read_table(tmp_path, twice)
    assert record.reason == "unreadable"
    assert "2 columns are named 'text'" in record.detail
    assert record.lost_documents == 40


def read_table(folder: Path, made: pa.Table) -> list[Record]:
    inbox = open_store(folder / "inbox")
    (folder / "inbox").mkdir()
    pq.write_table(made, folder / "inbox" / "a.parquet")
    job = make_job(inbox, folder)
    return list(read_span(inbox, job.inputs[0], FileSpan(0, 0, 1 << 30), SETTINGS))


BYTES = pa.array([b"caf\xe9", b"a text", b"a text"])
FORGED = pa.Array.from_buffers(pa.string(), 3, BYTES.buffers())


@pytest.mark.parametrize(
    "column",
    [
        FORGED,
        FORGED.cast(pa.large_binary()),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 1], pa.int32()), FORGED),
        BYTES.cast(pa.binary_view()),
        BYTES.cast(pa.binary_view()).view(pa.string_view()),
    ],
    ids=["string", "binary", "dictionary", "binary-view", "string-view"],
)
def test_a_text_that_is_not_utf8_is_set_aside_in_every_type(
    tmp_path: Path, column: pa.Array
) -> None:
    reasons = [record.reason for record in read_table(tmp_path, pa.table({"text": column}))]
    assert reasons == ["invalid-utf8", "", ""]


NAMES = [
    b"caf\xe9.jsonl",
    b"two\nlines.jsonl",
    b"C:\\data\\a.jsonl",
    "caf\u00e9\u202e.jsonl".encode(),
]


def test_a_file_that_no_store_can_name_is_a_record(tmp_path: Path) -> None:
    folder = tmp_path / "inbox" / "en"
    folder.mkdir(parents=True)
    for name in (*NAMES, b"good.jsonl", b"_SUCCESS"):
        (folder / os.fsdecode(name)).write_bytes(b"" if name == b"_SUCCESS" else LINES)
    store, inbox = open_store(tmp_path / "store"), open_store(tmp_path / "inbox")
    record = record_list(store, inbox, read_landed(inbox, "en"))
    landed = check_landed(store, inbox, "en", record)
    inputs = list_inputs(landed)
    job = ScatterJob(inbox.sub("en"), open_store(tmp_path / "staging"), inputs, SETTINGS, shards=1)
    quarantined = [piece.quarantined for piece in scatter(job) if piece.quarantined]
    assert all(set(reasons) == {"file-name"} for reasons in quarantined)
    assert {inputs[loss.file].name for loss in account_losses(inputs, scatter(job)).losses} == {
        "caf\\xe9.jsonl",
        "two\\nlines.jsonl",
        "C:\\data\\a.jsonl",
        "caf\u00e9\\u202e.jsonl",
    }
    for file in inputs:
        file.model_dump_json()
    assert list(sample_texts(inbox, landed, SETTINGS, 1000))


class BuggyFormat(FileFormat):
    """A format of another package with a mistake in it."""

    suffixes = (".buggy",)

    def read(self, part: FilePart, settings: IngestSettings) -> Any:
        yield Record(0, b"a text")
        raise KeyError("no such thing")


class Gone(LocalStore):
    """A folder of which nothing can be read: a stand-in for a storage that went away."""

    def open(self, key: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        return cast(BinaryIO, BrokenStream())


class BrokenStream:
    """An open file whose storage is gone."""

    def __enter__(self) -> BrokenStream:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def read(self, _size: int = -1) -> bytes:
        raise RuntimeError("the storage is gone")

    def seek(self, offset: int, _whence: int = 0) -> int:
        return offset

    def tell(self) -> int:
        return 0


def test_what_a_format_raises_becomes_a_record_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perennial.corpora.formats import open as opening

    kind = opening.FileKind(BuggyFormat(), "")
    monkeypatch.setattr(opening, "find_kind", lambda name: kind)
    inbox = open_store(tmp_path)
    inbox.write("a.buggy", b"12345")
    file = InputFile(name="a.buggy", size_bytes=5, etag=inbox.info("a.buggy").etag)
    document, record = read_span(inbox, file, FileSpan(0, 0, 5), SETTINGS)
    assert document.text == b"a text"
    assert record == Record(
        1, reason="unreadable", detail="KeyError: 'no such thing'", lost_bytes=5
    )


@pytest.mark.parametrize("name", SOUND)
def test_a_storage_that_fails_stays_an_error_of_the_storage(tmp_path: Path, name: str) -> None:
    open_store(tmp_path).write(name, SOUND[name])
    store = Gone(str(tmp_path))
    info = store.info(name)
    file = InputFile(name=name, size_bytes=info.size_bytes, etag=info.etag)
    with pytest.raises(RuntimeError, match="the storage is gone"):
        list(read_span(store, file, FileSpan(0, 0, info.size_bytes), SETTINGS))
