"""From a row of a corpus back to its documents, and to what is kept of them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.audit.counts import check_contents
from perennial.audit.files import Contents, Reader, read_documents, read_holdout
from perennial.config import RunSpec
from perennial.config.corpora import TAKEN_COLUMNS
from perennial.corpora import (
    CorpusManifest,
    IngestSettings,
    import_tokenizer,
    land,
    load_tokenizer,
    read_manifest,
)
from perennial.corpora.document_spans import OWN_COLUMNS, DocumentSpan, read_spans
from perennial.corpora.formats.base import FileSpan, make_record
from perennial.corpora.ingest.read import ScatterJob, scatter_piece
from perennial.corpora.manifest import DocumentsFile, HoldoutFile, InputFile, StoredFile
from perennial.errors import Altered
from perennial.store import Store, open_store
from tests.support.plain_ingest import ingest_plainly
from tests.support.small_tokenizers import byte_level_json
from tests.support.tiny_run import tiny_run

METADATA = {"url": "meta.url", "id": "id"}
DOCUMENTS: list[dict[str, Any]] = [
    {
        "id": n if n % 3 else f"doc-{n}",
        "text": f"document {n} has its own words: {'spam ' * (n % 17)}{n * n}",
        "source": f"s{n % 2}",
        "meta": {"url": f"https://example.org/{n}"} if n % 5 else {},
    }
    for n in range(120)
]
BY_DIGEST = {
    hashlib.sha256(document["text"].encode()).hexdigest()[:16]: document for document in DOCUMENTS
}


def _jsonl(folder: Path) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    return path


def _parquet(folder: Path) -> Path:
    path = folder / "a.parquet"
    kept = [document | {"id": str(document["id"])} for document in DOCUMENTS]
    meta = pa.struct([pa.field("url", pa.string())])
    schema = pa.schema(
        [("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("meta", meta)]
    )
    pq.write_table(pa.Table.from_pylist(kept, schema=schema), path, row_group_size=50)
    return path


def _arrow(folder: Path) -> Path:
    path, table = folder / "a.arrow", pq.read_table(_parquet(folder))
    (folder / "a.parquet").unlink()
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    return path


def _csv(folder: Path) -> Path:
    path = folder / "a.csv"
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["id", "text", "source", "meta.url"])
        rows.writerows(
            [d["id"], d["text"], d["source"], d["meta"].get("url", "")] for d in DOCUMENTS
        )
    return path


def _tar(folder: Path) -> Path:
    path = folder / "a.tar"
    with tarfile.open(path, "w") as archive:
        for number, document in enumerate(DOCUMENTS):
            parts = {"txt": document["text"], "json": json.dumps({**document, "text": ""})}
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(content.encode())
                archive.addfile(member, io.BytesIO(content.encode()))
    return path


def _warc(folder: Path) -> Path:
    path = folder / "a.warc"
    with path.open("wb") as stream:
        for document in DOCUMENTS:
            body = document["text"].encode()
            head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {len(body)}\r\n"
            head += f"id: {document['id']}\r\nsource: {document['source']}\r\n"
            if url := document["meta"].get("url"):
                head += f"meta.url: {url}\r\n"
            stream.write(head.encode() + b"\r\n" + body + b"\r\n\r\n")
    return path


def ingested(folder: Path, file: Path, **settings: Any) -> tuple[Store, CorpusManifest]:
    store, inbox = open_store(folder / "store"), open_store(folder / "inbox")
    land(inbox, "en", [file])
    (folder / "tokenizer.json").write_text(json.dumps(byte_level_json(400)))
    import_tokenizer(store, folder / "tokenizer.json")
    own: dict[str, Any] = {"sequence_length": 64, "seed": 0, "holdout_share": 0.2}
    own |= {"metadata": METADATA, "domain_field": "source", "shard_tokens": 1000}
    return store, ingest_plainly(store, inbox, "en", IngestSettings(**own | settings))


def rows_of(store: Store, manifest: CorpusManifest) -> np.ndarray:
    rows = []
    for shard in manifest.shards:
        with store.open(f"corpora/en/{shard.file}") as stream:
            rows += pq.read_table(stream)["tokens"].to_pylist()
    return np.frombuffer(b"".join(rows), "<u2").reshape(-1, manifest.sequence_length)


FORMATS = [_jsonl, _parquet, _arrow, _csv, _tar, _warc]


@pytest.mark.parametrize(
    ("write", "packing"), [(_jsonl, "concat"), *((write, "best-fit") for write in FORMATS)]
)
def test_I11_a_row_leads_back_to_its_documents(tmp_path: Path, write: Any, packing: str) -> None:
    file = write(tmp_path)
    tokens = file.stat().st_size // 12  # of two shards and a bit
    store, manifest = ingested(tmp_path, file, packing=packing, shard_tokens=tokens)
    assert len(manifest.shards) == len(manifest.documents) > 1
    spans = list(read_spans(store, manifest, range(manifest.rows)))
    assert len(spans) == sum(file.spans for file in manifest.documents)
    assert sum(span.tokens for span in spans) == manifest.counts.row_tokens
    by_document: dict[int, list[DocumentSpan]] = {}
    for span in spans:
        assert (span.file, len(span.digest)) == (manifest.inputs[0].name, 16)
        by_document.setdefault(span.offset, []).append(span)
    whole, ids, tokenizer = 0, rows_of(store, manifest), load_tokenizer(store).build()
    for parts in by_document.values():
        parts.sort(key=lambda span: span.before)
        held = [ids[span.row, span.start : span.start + span.tokens] for span in parts]
        text = tokenizer.decode(np.concatenate(held).tolist())
        document = BY_DIGEST[parts[0].digest]
        assert document["text"].startswith(text)
        whole += document["text"] == text
        expected = {"domain": document["source"], "id": str(document["id"])}
        expected |= {"url": document["meta"]["url"]} if document["meta"] else {}
        assert all(part.metadata == expected for part in parts)
    # The last tokens of a shard may fill no row.
    trained = manifest.counts.trained_documents
    assert whole == trained if packing == "best-fit" else whole >= 0.8 * trained
    some = [span for span in spans if span.row in (1, manifest.rows - 1)]
    assert list(read_spans(store, manifest, [manifest.rows - 1, 1, 1])) == some


def test_a_corpus_without_metadata_leads_back_to_places_alone(tmp_path: Path) -> None:
    store, manifest = ingested(tmp_path, _jsonl(tmp_path), metadata={}, domain_field="")
    span = next(read_spans(store, manifest, [0]))
    assert span.metadata == {}
    assert str(span) == f"a.jsonl at {span.offset}"
    with store.open("corpora/en/documents-00000.parquet") as stream:
        assert pq.read_schema(stream).names == list(OWN_COLUMNS[:-1])


def test_a_value_of_any_kind_is_kept_as_text(tmp_path: Path) -> None:
    kinds = [7, 1.5, True, None, ["a"], {"b": 1}, "ü", "\ud800", "x" * 5000]
    path = tmp_path / "a.jsonl"
    lines = [{"text": f"text number {n}", "id": kind} for n, kind in enumerate(kinds)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines * 8))
    store, manifest = ingested(tmp_path, path, metadata={"id": "id"}, holdout_share=0.0)
    spans = list(read_spans(store, manifest, range(manifest.rows)))
    found = {span.metadata.get("id") for span in spans}
    expected = {"7", "1.5", "true", None, '["a"]', '{"b": 1}', "ü", "?", "x" * 4096 + "..."}
    assert found == expected
    known = sum(file.known["id"] for file in manifest.documents)
    assert 0 < known == sum("id" in span.metadata for span in spans) < len(spans)


def test_a_value_breaks_no_line_and_a_domain_is_no_longer_than_one() -> None:
    span = DocumentSpan(0, 0, 1, 0, "a.jsonl", 7, "00", {"domain": "x\n\x1b[2Jy", "id": "3"})
    assert str(span) == "a.jsonl at 7 (domain x\\n\\x1b[2Jy, id 3)"
    settings = IngestSettings(sequence_length=8, seed=0)
    assert make_record(0, "a text", "d" * 5000, settings).domain == "d" * 4096 + "..."
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    record = make_record(0, "a text", deep, settings, [deep])
    assert (record.domain, record.fields) == ("nested too deeply", ("nested too deeply",))
    wrong = make_record(0, "a text", b"\xff", settings)
    assert (wrong.reason, wrong.detail[:25]) == ("invalid-utf8", "its domain: not UTF-8: by")


def test_what_is_kept_beside_documents_bounds_a_run_of_a_task(tmp_path: Path) -> None:
    """Of short documents the metadata and the domain are most of what a task holds."""
    path = tmp_path / "a.jsonl"
    rows = ({"text": f"text {n}", "m": "v" * 3000, "d": "w" * 3000} for n in range(40))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    land(open_store(tmp_path / "inbox"), "en", [path])
    settings = IngestSettings(
        sequence_length=8, seed=0, metadata={"m": "m"}, domain_field="d", piece_bytes=50_000
    )
    corpus = open_store(tmp_path / "inbox").sub("en")
    info = corpus.info("a.jsonl")
    file = InputFile(name="a.jsonl", size_bytes=info.size_bytes, etag=info.etag)
    job = ScatterJob(corpus, open_store(tmp_path / "staging"), (file,), settings, 1)
    assert scatter_piece(job, 0, (FileSpan(0, 0, info.size_bytes),)).runs == 5


def test_a_field_that_no_document_has_is_found(tmp_path: Path) -> None:
    fields = METADATA | {"site": "meta.site"}
    _, manifest = ingested(tmp_path, _jsonl(tmp_path), metadata=fields)
    assert manifest.find_unknown_metadata() == {"site": "meta.site"}


def test_I10_a_file_that_was_altered_is_not_believed(tmp_path: Path) -> None:
    store, manifest = ingested(tmp_path, _jsonl(tmp_path))
    key = f"corpora/en/{manifest.documents[0].file}"
    store.write(key, store.read(key)[:-9] + b"\0" * 9)
    with pytest.raises(Altered):
        list(read_spans(store, manifest, [0]))
    with pytest.raises(IndexError):
        list(read_spans(store, manifest, [manifest.rows]))


def test_I5_verify_sees_a_span_that_is_missing(tmp_path: Path) -> None:
    store, manifest = ingested(tmp_path, _jsonl(tmp_path))

    def findings() -> list[str]:
        contents: list[Contents] = []
        readers: dict[type[StoredFile], Reader] = {
            DocumentsFile: read_documents,
            HoldoutFile: read_holdout,
        }
        for file in manifest.files:
            read = readers.get(type(file))
            with store.open(f"corpora/en/{file.file}") as stream:
                contents += [read(stream)] if read else []
        found = check_contents("corpora/en/manifest.json", manifest, contents)
        return [finding.problem for finding in found]

    assert findings() == []
    key = f"corpora/en/{manifest.documents[0].file}"
    with store.open(key) as stream:
        table = pq.read_table(stream)
    with store.open(key, "wb") as stream:
        pq.write_table(table.slice(1), stream)
    spans, tokens = findings()
    assert "spans of documents" in spans
    assert "tokens in rows" in tokens


def test_a_corpus_of_an_earlier_version_has_no_such_files(tmp_path: Path) -> None:
    store, manifest = ingested(tmp_path, _jsonl(tmp_path), metadata={})
    older = json.loads(manifest.model_dump_json())
    del older["documents"], older["settings"]["metadata"]
    older["digest"] = CorpusManifest.model_validate(older).compute_digest()
    store.write("corpora/en/manifest.json", json.dumps(older).encode())
    assert list(read_spans(store, read_manifest(store, "en"), [0])) == []
    assert "documents" not in read_manifest(store, "en").model_dump()


def test_a_name_of_a_column_is_not_taken_twice(tmp_path: Path) -> None:
    assert TAKEN_COLUMNS == OWN_COLUMNS
    for name in ("offset", "Id", "a b", ""):
        spec = tiny_run(tmp_path)
        spec["corpora"]["metadata"] = {name: "id"}
        with pytest.raises(ValueError, match="corpora"):
            RunSpec.model_validate(spec)
