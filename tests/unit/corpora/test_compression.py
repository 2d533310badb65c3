"""Decompression: members, padding, garbage, limits; and a storage that fails stays what it is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa
import pytest
import zstandard

from perennial.corpora.formats.base import FileSpan, Record
from perennial.corpora.formats.compression import DecompressedStream
from perennial.corpora.formats.open import read_span
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.store import LocalStore, open_store

SETTINGS = IngestSettings(sequence_length=8, seed=0)
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
LINES = [f'{{"text": "document {i}"}}\n'.encode() for i in range(300)]
TEXT = b"".join(LINES)


def read(
    folder: Path, name: str, content: bytes, settings: IngestSettings = SETTINGS
) -> list[Record]:
    (folder / name).write_bytes(content)
    store = open_store(folder)
    info = store.info(name)
    file = InputFile(name=name, size_bytes=info.size_bytes, etag=info.etag)
    return list(read_span(store, file, FileSpan(0, 0, info.size_bytes), settings))


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("shape", ["one", "many", "padded", "empty-member", "within-a-line"])
def test_all_members_are_read_like_the_plain_file(tmp_path: Path, suffix: str, shape: str) -> None:
    pack = PACK[suffix]
    content = {
        "one": pack(TEXT),
        "many": b"".join(pack(b"".join(LINES[i : i + 50])) for i in range(0, 300, 50)),
        "padded": pack(TEXT) + bytes(512),
        "empty-member": pack(TEXT) + pack(b"") + bytes(8),
        "within-a-line": pack(TEXT[:5000]) + pack(TEXT[5000:]),
    }[shape]
    assert read(tmp_path, f"a.jsonl{suffix}", content) == read(tmp_path, "a.jsonl", TEXT)


def test_skippable_frames_and_those_without_size_are_passed(tmp_path: Path) -> None:
    size = 40 << 20  # which takes minutes where each read copies what was read before
    skipped = b"\x50\x2a\x4d\x18" + struct.pack("<I", size) + bytes(size)
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    records = read(tmp_path, "a.jsonl.zst", skipped + streamed + skipped)
    assert [record.reason for record in records] == [""] * 300


@pytest.mark.parametrize("suffix", PACK)
def test_garbage_behind_the_checksum_costs_no_document(tmp_path: Path, suffix: str) -> None:
    *documents, last = read(tmp_path, f"a.jsonl{suffix}", PACK[suffix](TEXT) + b"GARBAGE" * 10)
    assert [record.reason for record in documents] == [""] * 300
    assert (last.reason, last.offset) == ("trailing-bytes", len(TEXT))
    assert (last.lost_bytes, last.lost_documents) == (70, 0)
    assert "GA" in last.detail


@pytest.mark.parametrize("suffix", PACK)
def test_members_before_a_damaged_one_are_kept_to_the_last_document(
    tmp_path: Path, suffix: str
) -> None:
    first, second = PACK[suffix](b"".join(LINES[:150])), PACK[suffix](b"".join(LINES[150:]))
    half = len(second) // 2
    damaged = first + second[:half] + bytes([second[half] ^ 0x10]) + second[half + 1 :]
    name = f"a.jsonl{suffix}"
    loss = read(tmp_path, name, damaged)[-1]
    assert loss.reason == "truncated"
    assert loss.offset == len(b"".join(LINES[:150]))
    assert loss.lost_bytes == len(second)
    info = open_store(tmp_path).info(name)
    file = InputFile(name=name, size_bytes=info.size_bytes, etag=info.etag)
    span = FileSpan(0, 0, info.size_bytes)
    again = list(read_span(open_store(tmp_path), file, span, SETTINGS, loss))
    assert again == [*read(tmp_path, "a.jsonl", TEXT)[:150], loss]


def test_rows_before_a_damaged_member_are_kept_to_the_batch(tmp_path: Path) -> None:
    """Their numbers say nothing of how much of the text was read."""
    rows, sink = [f"{number} {'words ' * 900}" for number in range(1500)], io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema([("text", pa.string())])) as writer:
        writer.write_table(pa.table({"text": rows}), max_chunksize=30)
    text = sink.getvalue()
    first, second = text[: len(text) // 2], text[len(text) // 2 :]
    packed = gzip.compress(second)
    damaged = gzip.compress(first) + flip_bit(packed, len(packed) - 8)
    *_, last = read(tmp_path, "a.arrow.gz", damaged)
    assert last.reason == "truncated"
    assert 350 <= last.offset <= 750
    assert 750 <= (last.lost_documents or 0) <= 1500
    *kept, cut = read(tmp_path, "b.arrow.gz", gzip.compress(text)[: len(packed) // 2])
    assert (cut.reason, cut.offset) == ("truncated", len(kept))


def test_a_bad_checksum_is_met_behind_the_last_byte_of_text(tmp_path: Path) -> None:
    packed = gzip.compress(TEXT)
    stream = DecompressedStream(io.BytesIO(flip_bit(packed, -8)), len(packed), ".gz")
    read = b""
    with pytest.raises(OSError, match="incorrect data check"):
        while data := stream.read(1000):
            read += data
    assert read == TEXT
    lost = stream.describe_loss(300, len(TEXT))
    assert lost is not None
    assert (lost.position, lost.stored_bytes) == (0, len(packed))
    assert 300 <= (lost.documents or 0) <= 600


def flip_bit(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place:][1:]


def test_a_window_above_the_limit_is_named_with_what_to_do(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(
        window_log=28, enable_ldm=True, write_content_size=False
    )
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    content = packed.compress(TEXT) + packed.flush()
    (record,) = read(tmp_path, "a.jsonl.zst", content)
    assert (record.reason, record.lost_bytes) == ("zstd-window", len(content))
    assert "needs a window of 256 MiB (zstd --long=28)" in record.detail
    assert "set corpora.max_zstd_window" in record.detail
    allowed = SETTINGS.model_copy(update={"max_window_bytes": 1 << 28})
    texts = [record.text for record in read(tmp_path, "a.jsonl.zst", content, allowed)]
    assert texts == [record.text for record in read(tmp_path, "b.jsonl", TEXT)]


def test_xz_that_takes_more_memory_is_named_with_what_to_do(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 400 << 20}]
    (lost,) = read(tmp_path, "a.jsonl.xz", lzma.compress(TEXT, filters=filters))
    assert lost.reason == "zstd-window"
    assert "256 MiB of memory; set corpora.max_zstd_window" in lost.detail


def test_a_little_that_becomes_much_is_given_piece_by_piece() -> None:
    """Otherwise a task would hold what a hostile file becomes."""
    zeros = bytes(30_000_000)
    for suffix, pack in PACK.items():
        if suffix == ".bz2":
            zeros = zeros[:5_000_000]  # it is slow
        packed = pack(zeros)
        buffer, largest = bytearray(1 << 20), 0
        stream = DecompressedStream(io.BytesIO(packed), len(packed), suffix)
        while size := stream.readinto(buffer):
            largest = max(largest, size)
        assert stream.position == len(zeros)
        assert largest <= 1 << 17


class Failing(LocalStore):
    """A folder whose files fail after 100 bytes: a stand-in for a storage that goes away."""

    def open(self, key: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        return Breaking(Path(self.url, key).read_bytes())


class Breaking(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= 100:
            raise OSError("the storage is gone")
        return super().read(min(size or -1, 100))


@pytest.mark.parametrize("suffix", ["", *PACK])
def test_a_storage_that_fails_is_no_damage_of_the_file(tmp_path: Path, suffix: str) -> None:
    noise = b'{"text": "' + b"".join(b"%x" % zlib.crc32(b"%d" % i) for i in range(2000)) + b'"}\n'
    data = PACK[suffix](noise) if suffix else noise
    name = f"a.jsonl{suffix}"
    (tmp_path / name).write_bytes(data)
    store = Failing(str(tmp_path))
    info = store.info(name)
    file = InputFile(name=name, size_bytes=info.size_bytes, etag=info.etag)
    with pytest.raises(OSError, match="the storage is gone"):
        list(read_span(store, file, FileSpan(0, 0, info.size_bytes), SETTINGS))
