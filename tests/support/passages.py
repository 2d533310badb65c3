"""Passages of real text in many scripts, and documents as the passes of an ingest hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from perennial.corpora.ingest.documents import StagedDocuments, collect_documents
from perennial.corpora.ingest.spill import SCHEMA

PASSAGES: dict[str, str] = json.loads(
    (Path(__file__).parents[1] / "fixtures/declaration.json").read_text(encoding="utf-8")
)
"""the first article of the Universal Declaration of Human Rights, by language"""

SPACED = ("en", "fr", "ru", "ar", "hi", "ko")
"""languages whose script has spaces between words"""


def staged(texts: Sequence[str]) -> StagedDocuments:
    """Documents of one file, in their order, the offset of each being its number."""
    numbers = list(range(len(texts)))
    columns = {
        "file": [0] * len(texts),
        "offset": numbers,
        "order": numbers,
        "digest": numbers,
        "text": [text.encode() for text in texts],
    }
    return collect_documents(
        [
            pa.RecordBatch.from_arrays(
                [
                    pa.array(columns.get(field.name, [None] * len(texts)), field.type)
                    for field in SCHEMA
                ],
                schema=SCHEMA,
            )
        ]
    )
