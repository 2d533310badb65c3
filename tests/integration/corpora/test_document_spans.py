"""What is kept of documents, in a folder and in a bucket (I8)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perennial.corpora import (
    IngestSettings,
    import_tokenizer,
    land,
    load_tokenizer,
    read_landed,
    read_manifest,
)
from perennial.corpora.document_spans import read_spans
from perennial.corpora.reuse import borrow_corpus
from perennial.store import open_store
from tests.support.plain_ingest import ingest_plainly
from tests.support.small_tokenizers import byte_level_json


@pytest.mark.long
@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_I8_a_row_leads_back_to_its_documents_in_every_store(
    store_url: str, tmp_path: Path, packing: str
) -> None:
    root = open_store(store_url)
    store, inbox = root.sub("run"), root.sub("inbox")
    path, tokenizer = tmp_path / "a.jsonl", tmp_path / "tokenizer.json"
    texts = [f"document {n} of {'many ' * (n % 9)}words" for n in range(60)]
    lines = [json.dumps({"text": text, "id": f"doc-{n}"}) for n, text in enumerate(texts)]
    path.write_text("\n".join(lines))
    tokenizer.write_text(json.dumps(byte_level_json(400)))
    land(inbox, "en", [path])
    import_tokenizer(store, tokenizer)
    settings = IngestSettings.model_validate(
        {"sequence_length": 32, "seed": 0, "packing": packing, "metadata": {"id": "id"}}
        | {"shard_tokens": 400}
    )
    manifest = ingest_plainly(store, inbox, "en", settings)
    spans = list(read_spans(store, manifest, range(manifest.rows)))
    assert sum(span.tokens for span in spans) == manifest.counts.row_tokens
    for span in spans:
        place = int(span.metadata["id"].removeprefix("doc-"))
        assert path.read_bytes()[span.offset :].startswith(lines[place].encode())
    borrower = root.sub("borrower")
    import_tokenizer(borrower, tokenizer)
    landed = read_landed(inbox, "en")
    borrow_corpus(borrower, store, landed, load_tokenizer(borrower), settings)
    assert list(read_spans(borrower, read_manifest(borrower, "en"), range(manifest.rows))) == spans
