"""Tracing rows and steps to documents, by the interface and by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import perennial
from perennial.cli.app import app
from perennial.corpora import IngestSettings, import_tokenizer, land
from perennial.corpora.document_spans import read_spans
from perennial.store import open_store
from tests.support.old_store import OldStore, unpack_old_store
from tests.support.plain_ingest import ingest_plainly
from tests.support.refusal import refused
from tests.support.small_tokenizers import byte_level_json
from tests.support.tiny_run import tiny_run, write_run


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run file, whose store has a corpus of its documents."""
    store, texts = open_store(tmp_path / "store"), tmp_path / "a.jsonl"
    lines = [{"text": f"document {n} has words of its own", "id": f"doc-{n}"} for n in range(90)]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps(byte_level_json(400)))
    import_tokenizer(store, tokenizer)
    land(store.sub("inbox"), "en", [texts])
    settings = IngestSettings(sequence_length=64, seed=0, metadata={"id": "id"})
    ingest_plainly(store, store.sub("inbox"), "en", settings)
    return write_run(tmp_path, tiny_run(tmp_path))


@pytest.fixture
def old(tmp_path: Path) -> OldStore:
    return unpack_old_store(tmp_path)


def test_a_row_is_traced_to_its_documents(run_file: Path, tmp_path: Path) -> None:
    from perennial.corpora import read_manifest

    store = open_store(tmp_path / "store")
    expected = list(read_spans(store, read_manifest(store, "en"), [2, 3]))
    traced = perennial.open(run_file).trace("en", [2, 3])
    assert traced.documents == {"en": expected}
    words = ["trace", str(run_file), "en", "2", "3"]
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert document == {
        "stage": None,
        "documents": [{"corpus": "en"} | span.to_dict() for span in expected],
    }
    lines = CliRunner().invoke(app, words).stdout.splitlines()
    assert len(lines) == len(expected)
    first = expected[0]
    told = f"en row 2, tokens 0 to {first.tokens - 1}: a.jsonl at {first.offset} ("
    assert lines[0].startswith(told + first.metadata["id"].join(["id ", ")"]))


def test_what_cannot_be_traced_is_refused(run_file: Path, tmp_path: Path) -> None:
    run = perennial.open(run_file)
    with refused("row-missing", "ROW"):
        run.trace("en", [0, 10**6])
    with refused("corpus-not-ingested"):
        run.trace("fr", [0])
    with refused("corpus-name-invalid"):
        run.trace("../fr", [0])
    with refused("step-missing", "--step"):
        run.trace_step(1)
    several = (["en", "1", "--step", "1"], ["--step", "1", "--document", "0" * 16])
    for words in ([], ["en"], *several, ["en", "1", "--release", "r"]):
        done = CliRunner().invoke(app, ["trace", str(run_file), *words])
        assert done.exit_code == 2
        assert "name a corpus and its rows, or --step" in done.stderr
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "other").write_text("a text of nobody")
    for words, code in (
        (["--document", "0" * 16], "document-missing"),
        (["--document", "a name"], "documents-unreadable"),
        (["--document", ""], "documents-unreadable"),
        (["--document", '{"file": "a.jsonl", "offset": 0}'], "documents-unreadable"),
        (["--text", str(tmp_path / "none")], "documents-unreadable"),
        (["--text", str(tmp_path / "binary")], "documents-unreadable"),
        (["--text", str(tmp_path / "other")], "document-missing"),
        (["--release", "none"], "release-missing"),
    ):
        done = CliRunner().invoke(app, ["trace", str(run_file), *words, "--json"])
        assert (done.exit_code, json.loads(done.stdout)["error"]["code"]) == (2, code)


def test_a_corpus_of_an_earlier_version_kept_no_documents(old: OldStore) -> None:
    run = perennial.open(old.folder)
    with refused("documents-not-kept"):
        run.trace("help", [0])
    with refused("documents-not-kept"):
        run.trace_step(1)
    with refused("step-missing", "--step"):
        run.trace_step(10**6)
