"""Corpora of some kinds through the whole ingest, on a folder and on S3 alike (I5, I8)."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.corpora import IngestSettings, read_landed, train_tokenizer
from perennial.corpora.ingest.pipeline import ingest_corpus
from perennial.errors import InputError
from perennial.store import open_store
from tests.support.corpus_kinds import corpus_kinds

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.long]

NAMES = (
    "json-array",
    "csv",
    "hf-save-to-disk",
    "webdataset-tar",
    "warc-wet",
    "pq-nested-dotted",
    "jsonl-array",
)


def test_a_corpus_of_a_kind_is_trained_or_refused_as_a_user_expects(
    store_url: str, tmp_path: Path
) -> None:
    store = open_store(store_url)
    inbox, kinds = store.sub("inbox"), corpus_kinds()
    base = IngestSettings(sequence_length=16, seed=1, near_duplicates=None)
    for number, name in enumerate(NAMES):
        kind = kinds[name]
        kind.write(tmp_path / name)
        for path in (p for p in (tmp_path / name).rglob("*") if p.name != kind.marker):
            inbox.upload(path, f"{name}/{path.name}")
        inbox.write(f"{name}/{kind.marker}", b"")
        settings = IngestSettings(**(base.model_dump() | dict(kind.settings)))
        if not number:
            train_tokenizer(store, inbox, name, 400, settings)
        if kind.state == "refused":
            with pytest.raises(InputError, match="are bad") as refusal:
                ingest_corpus(store, inbox, name, settings)
            assert all(reason in str(refusal.value) for reason in kind.reasons)
            continue
        counts = ingest_corpus(store, inbox, name, settings).counts.check()
        assert counts.trained_documents + counts.held_out_documents == kind.documents, name
        assert counts.quarantined == dict(kind.reasons), name
        assert read_landed(inbox, name).files
