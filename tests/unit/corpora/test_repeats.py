"""Fuzzy duplicates and repeated lines among the documents to train, in an ingest without Ray."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from perennial.audit.counts import check_contents
from perennial.audit.files import read_documents, read_holdout, read_quarantine
from perennial.corpora import CorpusManifest, IngestSettings, import_tokenizer, land
from perennial.corpora.ingest import fuzzy_dedup
from perennial.corpora.ingest.fuzzy_dedup import choose_band_rows, choose_drops, find_pairs
from perennial.store import Store, open_store
from tests.support.plain_ingest import ingest_plainly
from tests.support.small_tokenizers import byte_level_json

SETTINGS = IngestSettings(
    sequence_length=2, seed=3, near_duplicates=None, holdout_share=0.05, shard_tokens=30_000
)


def _ingest(
    folder: Path, files: dict[str, list[str]], **more: Any
) -> tuple[Store, CorpusManifest, list[str]]:
    """The store, the manifest, and the texts that are trained."""
    folder.mkdir(exist_ok=True)
    paths = [folder / name for name in files]
    for path, texts in zip(paths, files.values(), strict=True):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(json.dumps(byte_level_json()))
    store = open_store(folder / "store")
    import_tokenizer(store, tokenizer)
    inbox = store.sub("inbox")
    land(inbox, "en", paths)
    manifest = ingest_plainly(store, inbox, "en", SETTINGS.model_copy(update=more))
    _check(store, manifest)
    decoder, trained = byte_level_decoder(tokenizer), []
    for shard in manifest.shards:
        rows = pq.read_table(Path(store.url, f"corpora/en/{shard.file}"))["tokens"].to_pylist()
        ids = np.frombuffer(b"".join(rows), dtype="<u2").tolist()
        trained += decoder.decode(ids, skip_special_tokens=False).split("<|endoftext|>")
    return store, manifest, [text for text in trained if text]


def byte_level_decoder(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _check(store: Store, manifest: CorpusManifest) -> None:
    """What `perennial verify` proves of the counts."""
    contents: list[Any] = []
    readers: list[tuple[Any, Any]] = [
        (read_quarantine, manifest.quarantine),
        (read_holdout, manifest.holdout),
        (read_documents, manifest.documents),
    ]
    for reader, files in readers:
        for file in files:
            with store.open(f"corpora/en/{file.file}") as stream:
                contents.append(reader(stream))
    manifest.counts.check()
    assert not check_contents("key", manifest, contents)


def _records(store: Store, manifest: CorpusManifest) -> list[dict[str, Any]]:
    lines = (store.read(f"corpora/en/{f.file}").decode().splitlines() for f in manifest.quarantine)
    return [json.loads(line) for part in lines for line in part]


WORDS = [f"w{number}" for number in range(5000)]


def _text(chance: random.Random, words: int = 300) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def _copy(text: str, changes: int, chance: random.Random) -> str:
    """A copy with so many other words, far enough from each other to cost 5 runs each."""
    words = text.split()
    step = len(words) // changes
    for number in range(changes):
        words[number * step + chance.randrange(step - 5)] = "other"
    return " ".join(words)


def _similarity(a: str, b: str) -> float:
    runs = [{tuple(t.split()[i : i + 5]) for i in range(len(t.split()) - 4)} for t in (a, b)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def _corpus(chance: random.Random) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Files of distinct texts, near copies (0.9 and more) and far copies (below 0.6) of them."""
    texts = [_text(chance) for _ in range(80)]
    near = [_copy(text, 3, chance) for text in texts[:30]]
    far = [_copy(text, 16, chance) for text in texts[30:60]]
    assert all(_similarity(a, b) > 0.89 for a, b in zip(texts, near, strict=False))
    assert all(_similarity(a, b) < 0.65 for a, b in zip(texts[30:], far, strict=False))
    mixed = [*far, *near, "too short to compare", "too short to compare"]
    chance.shuffle(mixed)
    return {"a.jsonl": texts, "b.jsonl": mixed[:40], "c.jsonl": mixed[40:]}, near, far


def test_I5_near_copies_are_dropped_far_ones_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    files, near, _ = _corpus(random.Random(1))
    store, manifest, trained = _ingest(tmp_path, files, fuzzy_duplicates=0.8, holdout_share=0)
    records = _records(store, manifest)
    assert manifest.counts.quarantined == {"fuzzy-duplicate": len(near)}
    assert Counter(record["reason"] for record in records) == {"fuzzy-duplicate": len(near)}
    lines = {name: (tmp_path / name).read_bytes() for name in files}

    def at(name: str, offset: int) -> str:
        return str(json.loads(lines[name][offset:].partition(b"\n")[0])["text"])

    assert {at(record["file"], record["offset"]) for record in records} == {*near}
    for record in records:
        _, _, name, _, offset = record["detail"].split()
        dropped = at(record["file"], record["offset"])
        assert _similarity(at(name, int(offset)), dropped) > 0.89, "the record names its like"
    assert sum(text in trained for text in files["a.jsonl"]) >= 77  # a shard's end is cut off


@pytest.mark.parametrize("piece_bytes", [5000, 40_000])
def test_the_result_does_not_depend_on_pieces(tmp_path: Path, piece_bytes: int) -> None:
    files, _, _ = _corpus(random.Random(2))
    more: dict[str, Any] = {"fuzzy_duplicates": 0.8, "repeated_lines": 30, "duplicates": "drop"}
    _, whole, _ = _ingest(tmp_path / "whole", files, **more)
    _, other, _ = _ingest(tmp_path / "pieces", files, **more, piece_bytes=piece_bytes)
    assert other.digest == whole.digest
    assert other.counts == whole.counts


def test_held_out_documents_are_not_compared_and_equal_ones_are_dropped_once(
    tmp_path: Path,
) -> None:
    chance = random.Random(3)
    texts = [_text(chance, 60) for _ in range(100)]
    more = {"fuzzy_duplicates": 0.8, "holdout_share": 0.3}
    _, kept, _ = _ingest(tmp_path / "keep", {"a.jsonl": texts, "b.jsonl": texts}, **more)
    _, dropped, _ = _ingest(
        tmp_path / "drop", {"a.jsonl": texts, "b.jsonl": texts}, **more, duplicates="drop"
    )
    held = kept.counts.held_out_documents
    assert held > 20
    assert kept.counts.quarantined == {"fuzzy-duplicate": 100 - held // 2}
    assert kept.counts.trained_documents == 100 - held // 2
    assert dropped.counts.quarantined == {}
    assert dropped.counts.duplicate_documents == 100


def test_of_a_chain_of_similar_documents_the_first_one_stays(tmp_path: Path) -> None:
    chance = random.Random(4)
    chain = [_text(chance)]
    for _ in range(6):
        chain.append(_copy(chain[-1], 4, chance))
    assert _similarity(chain[0], chain[-1]) < 0.7
    others = [_text(chance) for _ in range(20)]
    _, manifest, trained = _ingest(
        tmp_path, {"a.jsonl": chain, "b.jsonl": others}, fuzzy_duplicates=0.8, holdout_share=0
    )
    assert manifest.counts.quarantined == {"fuzzy-duplicate": 6}
    assert chain[0] in trained


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_pairs_of_the_similarity_asked_for_share_a_band(similarity: float) -> None:
    rows = choose_band_rows(similarity)
    assert 1 - (1 - similarity**rows) ** (64 // rows) >= 0.95


def test_clusters_are_those_of_the_pairs_in_any_order() -> None:
    chance = random.Random(5)
    pairs = [(n, n + 1) for n in range(300) if chance.random() < 0.95]
    pairs += [(chance.randrange(300), chance.randrange(300)) for _ in range(3)]
    lowest = list(range(302))
    for _ in range(302):
        for a, b in pairs:
            lowest[a] = lowest[b] = min(lowest[a], lowest[b])
    expected = {n: first for n, first in enumerate(lowest) if n != first}
    for _ in range(3):
        chance.shuffle(pairs)
        rows = [(n // 100, n % 100, m // 100, m % 100) for n, m in pairs]
        drops = choose_drops(np.array(rows, dtype=fuzzy_dedup._PAIR))
        places = (
            (d["file"] * 100 + d["offset"], d["first_file"] * 100 + d["first_offset"])
            for d in drops
        )
        assert dict(places) == expected


def test_what_shares_a_band_with_too_many_is_counted() -> None:
    entries = np.zeros(40, dtype=fuzzy_dedup._BAND)
    entries["offset"] = np.arange(40)
    chance = np.random.default_rng(0)
    entries["sketch"] = chance.integers(0, 256, entries["sketch"].shape)
    entries["sketch"][39] = entries["sketch"][0]
    pairs, left = find_pairs(entries[::-1], 0.8)
    assert pairs.tolist() == [(0, 39, 0, 0)]
    assert sorted(left["offset"].tolist()) == list(range(32, 39))


BANNER = "This banner of the site stands on every one of its pages."


def test_I5_repeated_lines_are_cut_where_they_occurred_before(tmp_path: Path) -> None:
    pages = [f"page {n}\n{BANNER}\nits own text {n}" for n in range(10)]
    twice = f"{BANNER}\r\n  {BANNER}\nlast"
    texts = [*pages, twice, f"{BANNER}\n\n{BANNER}  ", "Short.\nShort."]
    store, manifest, trained = _ingest(
        tmp_path, {"a.jsonl": texts}, repeated_lines=40, holdout_share=0
    )
    counts = manifest.counts
    assert counts.quarantined == {"repeated-lines": 1}
    assert counts.repeated_line_documents == 10
    assert counts.repeated_line_bytes == 9 * (len(BANNER) + 1) + len(twice) - len("last")
    (record,) = _records(store, manifest)
    assert record["detail"] == "2 lines, all of which occurred before"
    expected = [pages[0], *(f"page {n}\nits own text {n}" for n in range(1, 10)), "last", texts[-1]]
    assert {*trained} <= {*expected}
    assert sum(text in trained for text in expected) >= 11


def test_characters_are_counted_and_not_bytes(tmp_path: Path) -> None:
    line = "\u00e9" * 39
    _, manifest, _ = _ingest(
        tmp_path, {"a.jsonl": [f"{line}\n{n}" for n in range(9)]}, repeated_lines=40
    )
    assert manifest.counts.repeated_line_documents == 0


def test_a_line_of_a_dropped_document_is_kept_where_it_comes_again(tmp_path: Path) -> None:
    chance = random.Random(6)
    text, line = _text(chance), "A line that only the dropped copy and a later text have."
    texts = [text, f"{text}\n{line}", f"something else\n{line}", f"a third one\n{line}"]
    texts += [_text(chance) for _ in range(10)]
    _, manifest, trained = _ingest(
        tmp_path, {"a.jsonl": texts}, repeated_lines=40, fuzzy_duplicates=0.8, holdout_share=0
    )
    assert manifest.counts.quarantined == {"fuzzy-duplicate": 1}
    assert manifest.counts.repeated_line_documents == 1
    assert sum(line in document for document in trained) == 1
    assert any(document.startswith(f"something else\n{line}") for document in trained)


def test_manifests_without_them_are_what_they_were(tmp_path: Path) -> None:
    dumped = SETTINGS.model_dump()
    assert not {"fuzzy_duplicates", "repeated_lines"} & set(dumped)
    _, manifest, _ = _ingest(tmp_path, {"a.jsonl": [f"text {n}" for n in range(9)]})
    text = manifest.model_dump_json()
    assert not any(word in text for word in ("fuzzy", "repeated_line"))
