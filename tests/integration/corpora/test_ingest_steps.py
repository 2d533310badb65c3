"""Steps in an ingest: what they drop is in the quarantine, what they change is what is trained."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from perennial.corpora import IngestSettings, land, load_tokenizer, read_holdout, train_tokenizer
from perennial.corpora.ingest.pipeline import ingest_corpus
from perennial.corpora.manifest import CorpusManifest
from perennial.steps import STEPS
from perennial.store import Store, open_store
from tests.support.plain_ingest import ingest_plainly
from tests.support.refusal import refused

pytestmark = pytest.mark.usefixtures("ray_local")

STEPS_OF_RUN: list[dict[str, Any]] = [
    {"kind": "call", "function": "tests.support.own_step:drop_short", "parameters": {"least": 200}},
    {"kind": "personal-data"},
]
"""as a run file would name them"""


def _settings(*sections: dict[str, Any], **more: Any) -> IngestSettings:
    steps = tuple(STEPS[s["kind"]].model_validate(s).describe() for s in sections)
    return IngestSettings(sequence_length=64, seed=1, near_duplicates=None, steps=steps, **more)


def _texts() -> list[str]:
    long = [
        f"{text[:1500]} (asked by reader{n}@mail.org)" for n, text in enumerate(topics.values())
    ]
    return [*long, *(f"short {n}" for n in range(20))]


def _ingest(store: Store, folder: Path, settings: IngestSettings) -> CorpusManifest:
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in _texts()))
    inbox = store.sub("inbox")
    land(inbox, "en", [file])
    train_tokenizer(store, inbox, "en", 500, settings)
    return ingest_corpus(store, inbox, "en", settings)


def test_repeats_are_found_as_by_one_process(tmp_path: Path) -> None:
    texts = [text[:1500] for text in topics.values()]
    copies = [text.replace(" the ", " a ", 1) for text in texts[::3]]
    files = {"a.jsonl": texts, "b.jsonl": copies}
    for name, documents in files.items():
        lines = (json.dumps({"text": text}) + "\n" for text in documents)
        (tmp_path / name).write_text("".join(lines))
    settings = IngestSettings(
        sequence_length=64,
        seed=1,
        near_duplicates=None,
        fuzzy_duplicates=0.8,
        repeated_lines=40,
        shard_tokens=30_000,
        piece_bytes=30_000,
    )
    manifests, passes = [], list[str]()
    for name in ("ray", "plain"):
        store = open_store(tmp_path / name)
        inbox = store.sub("inbox")
        land(inbox, "en", [tmp_path / file for file in files])
        train_tokenizer(store, inbox, "en", 500, settings)
        if name == "plain":
            manifests.append(ingest_plainly(store, inbox, "en", settings))
        else:
            done = ingest_corpus(
                store, inbox, "en", settings, progress=lambda name, *_: passes.append(name)
            )
            manifests.append(done)
    assert manifests[0].counts == manifests[1].counts
    assert manifests[0].shards == manifests[1].shards
    counts = manifests[0].counts
    assert counts.quarantined["fuzzy-duplicate"] > len(copies) / 2
    assert counts.repeated_line_documents > 0
    order = ["read", "compare", "match", "cluster", "find lines", "hold out", "write"]
    assert [*dict.fromkeys(passes)] == order


def test_documents_are_dropped_changed_and_accounted_for(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    manifest = _ingest(store, tmp_path, _settings(*STEPS_OF_RUN, max_bad_share=0))
    counts = manifest.counts.check()
    short = sum(len(text) < 200 for text in _texts())
    assert counts.quarantined == {"call/drop-short": short}
    assert counts.documents == len(_texts())
    assert set(manifest.step_cpu_seconds) == {"1 call", "2 personal-data"}
    assert manifest.step_changes == {"2 personal-data": len(_texts()) - short}
    records = [
        json.loads(line)
        for file in manifest.quarantine
        for line in store.read(f"corpora/en/{file.file}").decode().splitlines()
    ]
    lines = (tmp_path / "a.jsonl").read_bytes()
    for record in records:
        line = lines[record["offset"] :].partition(b"\n")[0]
        assert len(json.loads(line)["text"]) < 200, "a record leads back to its document"
    tokenizer = load_tokenizer(store).build()
    held_out = [
        tokenizer.decode(document.tokens.tolist()) for document in read_holdout(store, manifest)
    ]
    assert all("(asked by email@example.com)" in text for text in held_out)
    assert held_out


def test_steps_are_part_of_what_a_corpus_is(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    settings = _settings(*STEPS_OF_RUN)
    manifest = _ingest(store, tmp_path, settings)
    again = open_store(tmp_path / "again")
    pieces = settings.model_copy(update={"piece_bytes": 20_000})
    assert _ingest(again, tmp_path, pieces).digest == manifest.digest
    inbox = store.sub("inbox")
    assert ingest_corpus(store, inbox, "en", settings) == manifest
    with refused("ingested-differently", "steps"):
        ingest_corpus(store, inbox, "en", _settings(STEPS_OF_RUN[0]))
    without = open_store(tmp_path / "without")
    plain = _ingest(without, tmp_path, _settings())
    assert plain.digest != manifest.digest
    assert "step_changes" not in plain.model_dump()
