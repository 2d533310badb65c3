"""Options of one corpus, from the run file to its manifest; a corpus that has some keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perennial.corpora import read_manifest
from perennial.store import open_store
from tests.support.cli import perennial, perennial_json
from tests.support.tiny_run import tiny_run, write_run, write_texts

pytestmark = pytest.mark.long


READ = {
    "crawl-*": {"text_field": "doc.text", "max_document": "64 MiB"},
    "poems": {"txt_documents": "line"},
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("crawl-1", ("doc.text", "paragraph", 64 << 20)),
        ("poems", ("text", "line", 8 << 20)),
    ],
)
def test_a_corpus_is_read_by_its_own_options_and_never_again_by_others(
    tmp_path: Path, name: str, options: tuple[str, str, int]
) -> None:
    texts = [
        json.loads(line)["text"] for line in write_texts(tmp_path)["help"].read_text().splitlines()
    ]
    nested, poems = tmp_path / "nested.jsonl", tmp_path / "poems.txt"
    nested.write_text("".join(json.dumps({"doc": {"text": text}}) + "\n" for text in texts))
    poems.write_text("\n".join(" ".join(text.split()) for text in texts))
    document = tiny_run(tmp_path)
    document["corpora"]["read"] = READ
    run_file = write_run(tmp_path, document)
    perennial("land", run_file, name, poems if name == "poems" else nested)
    assert perennial_json("ingest", run_file)["corpora"] == {name: "ready"}
    store = open_store(tmp_path / "store")
    manifest = read_manifest(store, name)
    settings = manifest.settings
    assert (settings.text_field, settings.txt_documents, settings.max_document_bytes) == options
    assert manifest.counts.documents == len(texts)
    before = {info.key: info.etag for info in store.list("corpora")}
    document["corpora"]["read"] = {name: {"txt_documents": "file", "text_field": "body"}}
    assert perennial_json("ingest", write_run(tmp_path, document))["corpora"] == {name: "ready"}
    assert {info.key: info.etag for info in store.list("corpora")} == before
