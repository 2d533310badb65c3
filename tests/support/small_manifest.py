"""The manifest of a corpus that nobody ingested."""

from __future__ import annotations

from typing import Any

from perennial.corpora.counts import Counts
from perennial.corpora.manifest import CorpusManifest, IngestSettings, InputFile


def small_manifest(name: str, **fields: Any) -> CorpusManifest:
    """Twelve documents of one file, ten of them trained."""
    counts = Counts(
        documents=12,
        trained_documents=10,
        held_out_documents=1,
        quarantined={"too-long": 1},
        trained_bytes=4000,
    )
    known: dict[str, Any] = {
        "name": name,
        "digest": "d1",
        "tokenizer": "t1",
        "engine": "tokenizers",
        "vocabulary": 300,
        "end_of_document": 0,
        "settings": IngestSettings(sequence_length=128, seed=0),
        "inputs": (InputFile(name="one.jsonl", size_bytes=5000, etag="e"),),
        "shards": (),
        "holdout": (),
        "quarantine": (),
        "counts": counts,
        "tokens_per_byte": 0.5,
    }
    return CorpusManifest(**known | fields)
