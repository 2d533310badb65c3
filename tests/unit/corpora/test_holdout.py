"""Held-out documents: all of them in the order of their files, or those that are asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from perennial.corpora import CorpusManifest, HeldOutDocument, IngestSettings, read_holdout
from perennial.corpora.counts import Counts
from perennial.corpora.manifest import HoldoutFile
from perennial.corpora.packing import holdout_bytes
from perennial.store import Store, open_store

PER_FILE = 300
"""more than are read at once"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


@pytest.fixture
def manifest(store: Store) -> CorpusManifest:
    """A corpus whose document n holds the tokens n and 0, in two files."""
    files = []
    for part in range(2):
        numbers = range(part * PER_FILE, (part + 1) * PER_FILE)
        tokens = [np.array([number, 0], dtype="<u2").tobytes() for number in numbers]
        data = holdout_bytes(
            tokens, list(numbers), [f"d{number}" for number in numbers]
        ).to_pybytes()
        name = f"holdout-{part:05d}.parquet"
        store.write(f"corpora/en/{name}", data)
        files.append(
            HoldoutFile(
                file=name,
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                documents=PER_FILE,
            )
        )
    return CorpusManifest(
        name="en",
        tokenizer="",
        engine="tokenizers",
        vocabulary=1000,
        end_of_document=0,
        settings=IngestSettings(sequence_length=8, seed=0),
        inputs=(),
        shards=(),
        holdout=tuple(files),
        quarantine=(),
        counts=Counts(),
        tokens_per_byte=1.0,
    )


def numbers_of(documents: list[HeldOutDocument]) -> list[int]:
    for tokens, size_bytes, domain in documents:
        assert (tokens.tolist(), domain) == ([size_bytes, 0], f"d{size_bytes}")
    return [document.size_bytes for document in documents]


def test_all_documents_are_read_in_the_order_of_their_files(
    store: Store, manifest: CorpusManifest
) -> None:
    assert numbers_of(list(read_holdout(store, manifest))) == list(range(2 * PER_FILE))


@pytest.mark.parametrize("indices", [[], [0], [5, 255, 256, 299, 300, 599], [599], [3, 4]])
def test_chosen_documents_are_read_by_their_number(
    store: Store, manifest: CorpusManifest, indices: list[int]
) -> None:
    assert numbers_of(list(read_holdout(store, manifest, indices))) == indices


def test_a_reader_that_stops_early_opens_no_further_file(
    store: Store, manifest: CorpusManifest
) -> None:
    store.remove("corpora/en/holdout-00001.parquet")
    documents = read_holdout(store, manifest)
    assert [next(documents).size_bytes for _ in range(PER_FILE)] == list(range(PER_FILE))
