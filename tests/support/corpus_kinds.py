"""Corpora as people have them: forms, and faults, each with what a user expects of it.

A corpus of a kind has 300 documents in one form, or with one fault.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

DOCUMENTS = 300
WORDS = "river stone the of evening a market to because small boats were waiting for wind and"


@cache
def texts() -> tuple[str, ...]:
    """Return 300 texts that differ, of one to three paragraphs."""
    vocabulary, made = WORDS.split(), []
    for number in range(DOCUMENTS):
        words = [vocabulary[(number * 7 + i * i + number // 9) % 16] for i in range(90)]
        parts = [" ".join(words[i : i + 30]) for i in range(0, 30 * (number % 3 + 1), 30)]
        made.append("\n\n".join(f"{part} {number}" for part in parts))
    return tuple(made)


Content = bytes | Any | Callable[[Path], None]  # Any: a pyarrow.Table


@dataclass(frozen=True)
class CorpusKind:
    """One kind of corpus.

    files: the corpus's files by name; content, a table of a Parquet file, or what makes the file.
    documents: good documents; None where only their upper bound is known.
    reasons: records that are none, by reason; None for any number, at least one.
    state: what becomes of it under the default bound of bad documents and bytes.
    settings: reading options that it needs.
    """

    files: Mapping[str, Content]
    documents: int | None = DOCUMENTS
    reasons: Mapping[str, int | None] = field(default_factory=dict)
    state: Literal["ready", "refused"] = "ready"
    settings: Mapping[str, Any] = field(default_factory=dict)
    marker: str = "_SUCCESS"

    def write(self, folder: Path) -> None:
        """Write the corpus into a folder, the marker last."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif isinstance(content, pa.Table):
                pq.write_table(content, path)
            else:
                content(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.marker).touch()


def lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows as JSON lines."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def parquet_kinds() -> dict[str, CorpusKind]:
    """Return the kinds of Parquet files."""
    strings = pa.array(texts())

    def table(column: Any, **more: Any) -> pa.Table:
        return pa.table({"text": column} | more)

    def forged(column: pa.Array) -> pa.Array:
        return pa.Array.from_buffers(pa.string(), len(column), column.buffers())

    bad = forged(pa.array([b"ok \xff\xfe bad", *(text.encode() for text in texts())]))
    nested = pa.table({"doc": pa.array([{"text": text, "url": "u"} for text in texts()])})

    def of_type(column: pa.Array) -> CorpusKind:
        return CorpusKind({"a.parquet": table(column)}, 0, {"text-not-string": 300}, "refused")

    def small_groups(path: Path) -> None:
        with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
            for number in range(2000):
                writer.write_table(pa.table({"text": [f"document {number} of a tiny row group"]}))

    def cut(path: Path) -> None:
        pq.write_table(table(strings), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def flipped(path: Path) -> None:
        pq.write_table(table(strings), path, row_group_size=50, compression="none")
        content = bytearray(path.read_bytes())
        place = pq.read_metadata(path).row_group(3).column(0).dictionary_page_offset
        content[place : place + 200] = bytes(b ^ 0x5A for b in content[place : place + 200])
        path.write_bytes(content)

    base = lines([{"text": text} for text in texts()])
    wide = {f"c{i}": pa.array([i] * DOCUMENTS) for i in range(3000)}
    dictionary = pa.DictionaryArray.from_arrays(pa.array(range(DOCUMENTS + 1), pa.int32()), bad)
    zero = table(pa.array([], pa.string()))
    return {
        "pq-string": CorpusKind({"a.parquet": table(strings)}),
        "pq-large-string": CorpusKind({"a.parquet": table(strings.cast(pa.large_string()))}),
        "pq-dictionary": CorpusKind({"a.parquet": table(strings.dictionary_encode())}),
        "pq-binary": CorpusKind({"a.parquet": table(strings.cast(pa.binary()))}),
        "pq-string-view": CorpusKind({"a.parquet": table(strings.cast(pa.string_view()))}),
        "pq-bad-utf8-string": CorpusKind({"a.parquet": table(bad)}, reasons={"invalid-utf8": 1}),
        "pq-bad-utf8-dictionary": CorpusKind(
            {"a.parquet": table(dictionary)}, reasons={"invalid-utf8": 1}
        ),
        "pq-nulls": CorpusKind(
            {"a.parquet": table(pa.array([*texts(), None, ""]))},
            reasons={"missing-text": 1, "empty-text": 1},
        ),
        "pq-list-text": of_type(pa.array([[t, "x"] for t in texts()])),
        "pq-struct-text": of_type(pa.array([{"v": t} for t in texts()])),
        "pq-int": of_type(pa.array(range(300))),
        "pq-two-columns-of-a-name": CorpusKind(
            {"a.parquet": pa.Table.from_arrays([strings, strings], names=["text", "text"])},
            0,
            {"unreadable": None},
            "refused",
        ),
        "pq-nested-only": CorpusKind({"a.parquet": nested}, 0, {"missing-text": None}, "refused"),
        "pq-nested-dotted": CorpusKind({"a.parquet": nested}, settings={"text_field": "doc.text"}),
        "pq-dotted-name": CorpusKind(
            {"a.parquet": pa.table({"a.b": strings})}, settings={"text_field": "a.b"}
        ),
        "pq-many-columns": CorpusKind({"a.parquet": table(strings, **wide)}),
        "pq-many-row-groups": CorpusKind({"a.parquet": small_groups}, 2000),
        "pq-zero-rows": CorpusKind({"a.jsonl": base, "b.parquet": zero}, reasons={"empty-file": 1}),
        "pq-no-text-column": CorpusKind(
            {"a.jsonl": base * 9, "b.parquet": pa.table({"x": pa.array([], pa.int64())})},
            2700,
            {"missing-text": None},
        ),
        "pq-encrypted": CorpusKind(
            {"a.jsonl": base * 3, "b.parquet": b"PARE" + bytes(20) + b"PARE"},
            900,
            {"unreadable": None},
        ),
        "pq-cut": CorpusKind(
            {"a.jsonl": base, "b.parquet": cut}, 300, {"unreadable": None}, "refused"
        ),
        "pq-flipped-bits": CorpusKind(
            {"a.jsonl": base * 9, "b.parquet": flipped}, 2700 + 250, {"unreadable": None}, "refused"
        ),
        "pq-domain-dictionary": CorpusKind(
            {"a.parquet": table(strings, source=pa.array(["a"] * 300).dictionary_encode())},
            settings={"domain_field": "source"},
        ),
        "pq-domain-is-text": CorpusKind(
            {"a.parquet": table(strings)}, settings={"domain_field": "text"}
        ),
    }


def compressed_kinds() -> dict[str, CorpusKind]:
    """Return the kinds of compressed files."""
    rows = [{"text": text} for text in texts()]
    base = lines(rows)
    wrong_checksum = gzip.compress(base)
    wrong_checksum = wrong_checksum[:-8] + bytes([wrong_checksum[-8] ^ 1]) + wrong_checksum[-7:]
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    cut, packed = {"truncated": None}, zstd(base)
    return {
        "zst-plain": CorpusKind({"a.jsonl.zst": zstd(base)}),
        "zst-two-frames": CorpusKind(
            {"a.jsonl.zst": zstd(lines(rows[:150])) + zstd(lines(rows[150:]))}
        ),
        "zst-long-window": CorpusKind(
            {"a.jsonl.zst": long_window(base)},
            0,
            {"zstd-window": None},
            "refused",
        ),
        "zst-skippable-frame": CorpusKind({"a.jsonl.zst": skippable + zstd(base)}),
        "zst-garbage-tail": CorpusKind(
            {"a.jsonl.zst": zstd(base) + b"tail"},
            reasons={"trailing-bytes": 1},
        ),
        "zst-magicless": CorpusKind({"a.jsonl": base, "b.jsonl.zst": base}, 300, cut, "refused"),
        "zst-cut": CorpusKind(
            {"a.jsonl.zst": packed[: len(packed) // 2]},
            None,
            cut,
            "refused",
        ),
        "gz-plain-text": CorpusKind({"a.txt.gz": gzip.compress(plain_text())}),
        "gz-zero-tail": CorpusKind({"a.jsonl.gz": gzip.compress(base) + bytes(512)}),
        "gz-wrong-checksum": CorpusKind(
            {"a.jsonl": base, "b.jsonl.gz": wrong_checksum},
            None,
            cut,
            "refused",
        ),
        "jsonl-xz": CorpusKind({"a.jsonl.xz": lzma.compress(base)}),
        "jsonl-bz2": CorpusKind({"a.jsonl.bz2": bz2.compress(base)}),
    }


def form_kinds() -> dict[str, CorpusKind]:
    """Return the kinds of formats that are no Parquet, and of what is taken for one."""
    rows = [{"text": text} for text in texts()]
    base, table = lines(rows), pa.Table.from_pylist(rows)
    rows_csv = b"".join(b'"%s"\n' % text.replace('"', '""').encode() for text in texts())
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for number, text in enumerate(texts()):
            info = tarfile.TarInfo(f"{number:06d}.txt")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    records = b"".join(
        b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n"
        % (len(text.encode()), text.encode())
        for text in texts()
    )
    no_field, pretty = {"missing-text": 300}, json.dumps(rows, indent=1).encode()
    by_line = "\n".join(text.replace("\n", " ") for text in texts()).encode()
    return {
        "json-gz-c4": CorpusKind({"c4-train.00000.json.gz": gzip.compress(base)}),
        "json-zst-dolma": CorpusKind({"cc_en-0000.json.zst": zstd(base)}),
        "ndjson": CorpusKind({"a.ndjson": base}),
        "json-array": CorpusKind({"a.json": json.dumps(rows).encode()}),
        "json-array-pretty": CorpusKind({"a.json": pretty}),
        "jsonl-array-pretty": CorpusKind({"a.jsonl": pretty}, 0, {"invalid-json": None}, "refused"),
        "jsonl-array": CorpusKind(
            {"a.jsonl": json.dumps(rows).encode()}, 0, {"invalid-json": None}, "refused"
        ),
        "csv": CorpusKind({"a.csv": b"text\n" + rows_csv}),
        "tsv": CorpusKind({"a.tsv": b"text\tid\n" + rows_csv.replace(b'"\n', b'"\t7\n')}),
        "csv-unquoted": CorpusKind(
            {"a.csv": b"id,text\n" + b"1,a, b and c\n" * 300}, 0, {"invalid-row": 300}, "refused"
        ),
        "warc-wet": CorpusKind({"a.warc.wet.gz": gzip.compress(records)}),
        "webdataset-tar": CorpusKind({"a.tar": archive.getvalue()}),
        "arrow-stream": CorpusKind({"a.arrow": stream.getvalue()}),
        "content-field": CorpusKind(
            {"a.jsonl": lines([{"content": t, "id": i} for i, t in enumerate(texts())])},
            0,
            no_field,
            "refused",
        ),
        "raw-content-field": CorpusKind(
            {"a.jsonl": lines([{"raw_content": t} for t in texts()])},
            settings={"text_field": "raw_content"},
        ),
        "pretokenised": CorpusKind(
            {"a.jsonl": lines([{"input_ids": [*range(100)]}] * 300)}, 0, no_field, "refused"
        ),
        "chat": CorpusKind(
            {"a.jsonl": lines([{"messages": [{"role": "user", "content": t}]} for t in texts()])},
            0,
            no_field,
            "refused",
        ),
        "text-list": CorpusKind(
            {"a.jsonl": lines([{"text": [t]} for t in texts()])},
            0,
            {"text-not-string": 300},
            "refused",
        ),
        "metadata-nan": CorpusKind(
            {
                "a.jsonl": b"".join(
                    b'{"text": %s, "score": NaN}\n' % json.dumps(t).encode() for t in texts()
                )
            }
        ),
        "txt-line": CorpusKind({"a.txt": by_line}, settings={"txt_documents": "line"}),
        "txt-line-as-paragraph": CorpusKind({"a.txt": by_line}, 1),
        "txt-file": CorpusKind(
            {f"{i}.txt": text.encode() for i, text in enumerate(texts())},
            settings={"txt_documents": "file"},
        ),
        "txt-too-long": CorpusKind(
            {"a.jsonl": base, "b.txt": b"lorem ipsum dolor sit amet\n" * 400_000},
            reasons={"too-long": 1},
        ),
        "longer-than-a-sequence": CorpusKind(
            {"a.jsonl": lines([{"text": " ".join(texts())}] * 3 + rows)}, 303
        ),
        "empty-objects-and-lines": CorpusKind(
            {"a.jsonl": base + b"{}\n\n\n  \n"}, reasons={"missing-text": 1}
        ),
        "nul-tail": CorpusKind({"a.jsonl": base + bytes(4096)}, reasons={"invalid-json": 1}),
        "no-last-newline": CorpusKind(
            {"a.jsonl": base.rstrip(b"\n") + base}, 598, {"invalid-json": 1}
        ),
    }


def folder_kinds() -> dict[str, CorpusKind]:
    """Return the kinds of folders: what stands beside data, and how files are named."""
    rows = [{"text": text} for text in texts()]
    base, first, second = lines(rows), lines(rows[:150]), lines(rows[150:])
    table = pa.Table.from_pylist(rows)

    def linked(path: Path) -> None:
        path.with_name("outside").write_bytes(second)
        path.symlink_to(path.with_name("outside").rename(path.parent.parent / "outside"))

    def bad_name(name: str) -> CorpusKind:
        return CorpusKind({name: base}, 0, {"file-name": None}, "refused")

    finder = {"a.jsonl": base, ".DS_Store": b"\0\0\0\1Bud1", "__MACOSX/._a.jsonl": b"\0\5"}
    snapshot: dict[str, Content] = {
        "data/train-00000-of-00001.parquet": table,
        "README.md": b"# card\n",
        ".cache/huggingface/download/data/train.parquet.metadata": b"x\n",
    }
    saved = io.BytesIO()
    with pa.ipc.new_stream(saved, table.schema) as writer:
        writer.write_table(table)
    return {
        "success-only": CorpusKind({}, 0, state="refused"),
        "manifest-only": CorpusKind({"a.jsonl": base}, marker="manifest.json"),
        "hf-snapshot": CorpusKind(snapshot, reasons={"unknown-format": 1}),
        "hf-save-to-disk": CorpusKind(
            {
                "data-00000-of-00001.arrow": saved.getvalue(),
                "state.json": b"{\n}",
                "dataset_info.json": b"{\n}",
            }
        ),
        "spark-temporary": CorpusKind(
            {
                "part-0.jsonl": first,
                "_temporary/0/task_1/part-1.jsonl": second,
                "part-1.jsonl": second,
            },
        ),
        "jupyter-checkpoints": CorpusKind(
            {"a.jsonl": base, ".ipynb_checkpoints/a-checkpoint.jsonl": base},
        ),
        "hive-partitions": CorpusKind(
            {"lang=en/0.parquet": table.slice(0, 150), "lang=fr/0.parquet": table.slice(150)}
        ),
        "ds-store": CorpusKind(finder),
        "thumbs-db": CorpusKind(
            {"a.jsonl": base, "Thumbs.db": b"x"}, reasons={"unknown-format": 1}
        ),
        "latin1-file-name": bad_name(os.fsdecode(b"caf\xe9.jsonl")),
        "backslash-file-name": bad_name("C:\\data\\a.jsonl"),
        "newline-file-name": bad_name("a\nb.jsonl"),
        "case-only-names": CorpusKind({"A.jsonl": first, "a.jsonl": second}),
        "symlink-file": CorpusKind({"a.jsonl": first, "b.jsonl": linked}),
    }


def text_kinds() -> dict[str, CorpusKind]:
    """Return the kinds of text and of its encodings."""
    rows = [{"text": text} for text in texts()]
    base = lines(rows)
    accented = plain_text().decode().replace("the", "th\u00e9")
    mojibake = [{"text": t.replace("the", "th\u00e9").encode().decode("latin-1")} for t in texts()]
    blank = [{"text": "\u00a0\u3000"}, {"text": "\u2028"}]
    emoji = "\u202eabc\u202c \u05e9\u05dc\u05d5\u05dd \U0001f469\u200d\U0001f467 " * 20
    not_text: dict[str, int | None] = {"invalid-utf8": None}
    return {
        "utf16-jsonl": CorpusKind(
            {"a.jsonl": base.decode().encode("utf-16")},
            0,
            not_text,
            "refused",
        ),
        "utf16-txt": CorpusKind(
            {"a.txt": plain_text().decode().encode("utf-16")}, 0, not_text, "refused"
        ),
        "latin1-txt": CorpusKind({"a.txt": accented.encode("latin-1")}, None, not_text, "refused"),
        "mojibake": CorpusKind({"a.jsonl": lines(mojibake)}),
        "crlf-code": CorpusKind(
            {"a.jsonl": lines([{"text": "def f():\r\n\treturn 1\r\n" + t} for t in texts()])}
        ),
        "blank-beyond-ascii": CorpusKind(
            {"a.jsonl": base + lines(blank)}, reasons={"empty-text": 2}
        ),
        "right-to-left-and-emoji": CorpusKind({"a.jsonl": base + lines([{"text": emoji}])}, 301),
        "composed-and-decomposed": CorpusKind(
            {
                "a.jsonl": base
                + lines([{"text": unicodedata.normalize("NFD", f"{t} \u00e9")} for t in texts()])
            },
            600,
        ),
    }


def corpus_kinds() -> dict[str, CorpusKind]:
    """Return all kinds by name."""
    return parquet_kinds() | compressed_kinds() | form_kinds() | folder_kinds() | text_kinds()


def zstd(data: bytes) -> bytes:
    """Return one frame."""
    packed: bytes = pa.compress(data, "zstd").to_pybytes()
    return packed


def long_window(data: bytes) -> bytes:
    """Return a zstd frame, of one raw block, that asks for a window of 2 GiB."""
    block = (len(data) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + block + data


def plain_text() -> bytes:
    """Return the texts as paragraphs, one a document."""
    return "\n\n".join(text.replace("\n\n", "\n") for text in texts()).encode()
