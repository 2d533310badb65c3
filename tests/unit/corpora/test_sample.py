"""The tokens of a corpus, by its first documents, and how many these may miss."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from perennial.corpora import IngestSettings
from perennial.corpora.landing import LocalFile, StoredLandingFile
from perennial.corpora.sample import TokenEstimate, estimate_tokens
from perennial.store import open_store

SETTINGS = IngestSettings(sequence_length=128, seed=0)
TEXT = "words of a document, some more of them, and an end " * 8


def _local(path: Path) -> LocalFile:
    return LocalFile(path.name, path.stat().st_size, path)


def _estimate(*paths: Path) -> TokenEstimate:
    estimate = estimate_tokens([_local(path) for path in paths], SETTINGS, None)
    assert estimate is not None
    return estimate


def _lines(count: int, **others: str) -> bytes:
    rows = [json.dumps(others | {"text": TEXT}) for _ in range(count)]
    return "".join(f"{row}\n" for row in rows).encode()


def test_other_fields_of_a_line_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_lines(500, url="https://example.org/" + "x" * 2000))
    assert _estimate(path).tokens == pytest.approx(500 * (len(TEXT) / 4 + 1), rel=0.02)


def test_files_that_are_read_whole_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_lines(7))
    estimate = _estimate(path)
    assert estimate.tokens == 7 * (len(TEXT) // 4 + 1)
    assert estimate.at_most == pytest.approx(2 * estimate.tokens, rel=0.02), "two bytes a token"
    assert len(estimate.lengths) == 7


@pytest.mark.parametrize("count", [3, 400])
def test_of_many_files_the_first_stand_for_the_others(tmp_path: Path, count: int) -> None:
    for number in range(12):
        (tmp_path / f"{number}.jsonl").write_bytes(_lines(count))
    estimate = _estimate(*sorted(tmp_path.iterdir()))
    true = 12 * count * (len(TEXT) / 4 + 1)
    assert estimate.tokens == pytest.approx(true, rel=0.02)
    assert estimate.at_most >= 2 * true


def test_compressed_text_may_be_more_than_its_size_says(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    rows = [json.dumps({"text": f"{TEXT}{n * 7919}"}) for n in range(4000)]
    path.write_bytes(gzip.compress("\n".join(rows).encode(), 9))
    true = 4000 * len(TEXT) / 4
    estimate = _estimate(path)
    assert estimate.tokens < true, "text that repeats itself is compressed far better than most"
    assert estimate.at_most > 7 * estimate.tokens


def test_files_of_a_store_are_sampled_where_they_are(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("corpus/a.jsonl", _lines(9))
    size = store.info("corpus/a.jsonl").size_bytes
    stored = StoredLandingFile("a.jsonl", size, store, "corpus/a.jsonl")
    estimate = estimate_tokens([stored], SETTINGS, None)
    assert estimate is not None and estimate.tokens == 9 * (len(TEXT) // 4 + 1)


def test_files_without_a_document_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("no JSON\n" * 40)
    (tmp_path / "b.jsonl").write_text("")
    files = [_local(path) for path in sorted(tmp_path.iterdir())]
    assert estimate_tokens(files, SETTINGS, None) is None
