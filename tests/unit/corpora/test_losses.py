"""What damaged files held is estimated: no less than the truth, no more than twice that."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from perennial.corpora.formats.base import FileSpan, Record
from perennial.corpora.formats.open import read_span
from perennial.corpora.ingest.losses import LossAccount
from perennial.corpora.ingest.partition import plan_pieces
from perennial.corpora.ingest.quality import account_losses, check_quality
from perennial.corpora.ingest.read import PieceResult, ScatterJob, scatter_piece
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.store import open_store
from tests.support.refusal import refused

SETTINGS = IngestSettings(sequence_length=8, seed=0)
COUNT = 2000


@cache
def texts() -> list[str]:
    """Documents of random words of real text, no two of them alike."""
    rng, words = random.Random(0), " ".join(topics.values()).split()
    return [f"{i} " + " ".join(rng.choices(words, k=rng.randrange(20, 120))) for i in range(COUNT)]


def lines(documents: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in documents)


def zstd(data: bytes, *, size: bool = True, checksum: bool = True) -> bytes:
    compressor = zstandard.ZstdCompressor(write_content_size=size, write_checksum=checksum)
    return compressor.compress(data)


def flip(data: bytes, share: float) -> bytes:
    place = int(len(data) * share)
    return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


def smash(data: bytes, share: float) -> bytes:
    """Overwrite enough for the decoder to notice at once."""
    place = int(len(data) * share)
    return data[:place] + b"\xff" * 3000 + data[place + 3000 :]


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def parquet(documents: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": documents}), sink, row_group_size=500)
    return bytes(sink.getvalue().to_pybytes())


def damage_group(data: bytes, group: int) -> bytes:
    column = pq.read_metadata(pa.BufferReader(data)).row_group(group).column(0)
    place = column.dictionary_page_offset or column.data_page_offset
    return data[:place] + bytes(8) + data[place + 8 :]


class Planted(NamedTuple):
    """Files as they landed, and the stored bytes that are lost of them in truth."""

    files: dict[str, bytes]
    lost_bytes: int


def alone(name: str, whole: bytes, landed: bytes, intact: int = 0) -> Planted:
    """One file, of which `intact` bytes can be relied on."""
    return Planted({name: landed}, len(whole) - intact)


def flipped(suffix: str, pack: Callable[[bytes], bytes], share: float) -> Planted:
    """One member, of which one bit is another."""
    whole = pack(lines(texts()))
    return alone(f"a.jsonl{suffix}", whole, flip(whole, share))


def flipped_second(suffix: str, pack: Callable[[bytes], bytes]) -> Planted:
    """Three members, of which the second is damaged."""
    packed = [pack(lines(texts()[i : i + 700])) for i in (0, 700, 1400)]
    landed = packed[0] + flip(packed[1], 0.9) + packed[2]
    return alone(f"a.jsonl{suffix}", b"".join(packed), landed, len(packed[0]))


def nine_cut(suffix: str, pack: Callable[[list[str]], bytes]) -> Planted:
    """Ten files, nine of them cut to a tenth."""
    parts = [pack(texts()[i * 200 : i * 200 + 200]) for i in range(10)]
    landed = [cut(part, 0.1) if i else part for i, part in enumerate(parts)]
    missing = sum(map(len, parts)) - sum(map(len, landed))
    return Planted({f"{i}{suffix}": part for i, part in enumerate(landed)}, missing)


def batches(documents: list[str]) -> bytes:
    sink, table = io.BytesIO(), pa.table({"text": documents})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return sink.getvalue()


def members(documents: list[str]) -> bytes:
    return pack_tar(*((f"{i}.txt", text.encode()) for i, text in enumerate(documents)))


def pack_tar(*files: tuple[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def pages(documents: list[str]) -> bytes:
    head = "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: "
    texts = ((len(text.encode()), text) for text in documents)
    return "".join(f"{head}{size}\r\n\r\n{text}\r\n\r\n" for size, text in texts).encode()


def uneven() -> Planted:
    """A gzip file whose second half is ten times as compressible, so that only ISIZE is right."""
    whole = gzip.compress(lines(uneven_texts()))
    intact = len(gzip.compress(lines(texts()[:500])))
    return alone("a.jsonl.gz", whole, smash(whole, intact / len(whole)))


def uneven_texts() -> list[str]:
    return [*texts()[:1000], *(f"{i} " + "the same words " * 30 for i in range(1000))]


def second_member(suffix: str, pack: Callable[[bytes], bytes]) -> Planted:
    """Two members, of which the second does not begin like one."""
    first, second = pack(lines(texts()[:1000])), pack(lines(texts()[1000:]))
    landed = first + b"\xff" + second[1:]
    return alone(f"a.jsonl{suffix}", first + second, landed, len(first))


def sibling(name: str, whole: bytes, landed: bytes) -> Planted:
    """A file of the second half that cannot be read at all, beside a sound one."""
    data = lines(texts()[:1000])
    first = parquet(texts()[:1000]) if "parquet" in name else gzip.compress(data)
    return Planted({name.replace("b.", "a."): first, name: landed}, len(whole))


HALF = gzip.compress(lines(texts()[1000:]))
PLANTED: dict[str, Callable[[], Planted]] = {
    "gzip-flipped": lambda: flipped(".gz", gzip.compress, 0.5),
    "gzip-flipped-early": lambda: flipped(".gz", gzip.compress, 0.2),
    "gzip-flipped-second": lambda: flipped_second(".gz", gzip.compress),
    "gzip-uneven": uneven,
    "gzip-nine-of-ten-cut": lambda: nine_cut(".jsonl.gz", lambda d: gzip.compress(lines(d))),
    "gzip-second-member": lambda: second_member(".gz", gzip.compress),
    "gzip-is-none": lambda: sibling("b.jsonl.gz", HALF, b"x" + HALF[1:]),
    "zstd-flipped": lambda: flipped(".zst", zstd, 0.5),
    "zstd-smashed-without-checksum": lambda: alone(
        "a.jsonl.zst", whole := zstd(lines(texts()), checksum=False), smash(whole, 0.3)
    ),
    "zstd-flipped-second": lambda: flipped_second(".zst", zstd),
    "zstd-cut": lambda: alone(
        "a.jsonl.zst", whole := zstd(lines(texts())), cut(whole, 0.3), int(len(whole) * 0.3)
    ),
    "zstd-nine-of-ten-cut": lambda: nine_cut(".jsonl.zst", lambda d: zstd(lines(d), size=False)),
    "zstd-second-frame": lambda: second_member(".zst", zstd),
    "bz2-flipped": lambda: flipped(".bz2", lambda d: bz2.compress(d, 1), 0.5),
    "xz-flipped": lambda: flipped(".xz", lambda d: lzma.compress(d, preset=1), 0.5),
    "arrow-nine-of-ten-cut": lambda: nine_cut(".arrow", batches),
    "tar-nine-of-ten-cut": lambda: nine_cut(".tar", members),
    "tar-lines-nine-of-ten-cut": lambda: nine_cut(
        ".tar", lambda d: pack_tar(("a.jsonl", lines(d)))
    ),
    "warc-nine-of-ten-cut": lambda: nine_cut(".warc", pages),
    "arrow-gzip-flipped": lambda: alone(
        "a.arrow.gz", whole := gzip.compress(batches(texts())), flip(whole, 0.5)
    ),
    "parquet-row-group": lambda: alone(
        "a.parquet", whole := parquet(texts()), damage_group(whole, 2), len(whole) * 3 // 4
    ),
    "parquet-cut": lambda: sibling("b.parquet", whole := parquet(texts()[1000:]), cut(whole, 0.9)),
}


def read(job: ScatterJob, number: int) -> list[Record]:
    """The records of a file, without those of a part that turned out to be damaged."""
    file = job.inputs[number]
    span = FileSpan(number, 0, file.size_bytes)
    records = list(read_span(job.corpus, file, span, SETTINGS))
    if not records[-1].is_loss:
        return records
    return list(read_span(job.corpus, file, span, SETTINGS, records[-1]))


def scattered(
    folder: Path, files: dict[str, bytes]
) -> tuple[tuple[InputFile, ...], list[PieceResult], LossAccount, list[Record]]:
    inbox = open_store(folder / "inbox")
    for name, data in files.items():
        inbox.write(name, data)
    inputs = tuple(
        InputFile(name=i.key, size_bytes=i.size_bytes, etag=i.etag) for i in inbox.list("")
    )
    job = ScatterJob(inbox, open_store(folder / "staging"), inputs, SETTINGS, shards=1)
    pieces = [
        scatter_piece(job, i, piece)
        for i, piece in enumerate(plan_pieces(inputs, SETTINGS.piece_bytes))
    ]
    records = [record for number in range(len(inputs)) for record in read(job, number)]
    return inputs, pieces, account_losses(inputs, pieces), records


@pytest.mark.parametrize("case", PLANTED)
def test_I5_an_estimate_of_loss_is_between_the_truth_and_twice_that(
    tmp_path: Path, case: str
) -> None:
    planted = PLANTED[case]()
    inputs, pieces, account, records = scattered(tmp_path, planted.files)
    good = {record.text.decode() for record in records if not record.reason}
    whole = set(uneven_texts() if case == "gzip-uneven" else texts())
    assert good <= whole
    lost = len(whole - good)
    bad = sum(piece.bad for piece in pieces) + account.uncounted
    assert lost <= bad <= 2 * lost
    assert planted.lost_bytes <= account.lost_bytes <= 2 * planted.lost_bytes
    with refused("too-much-bad"):
        check_quality("inbox/en", "kept", inputs, SETTINGS, pieces, account)
