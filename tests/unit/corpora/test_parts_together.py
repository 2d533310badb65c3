"""Parts of a corpus beside what else an ingest does: repeats, packing, documents of rows, ids."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from perennial.audit.counts import check_contents, check_manifest
from perennial.audit.files import Contents, Reader, read_documents, read_holdout, read_quarantine
from perennial.corpora import (
    CorpusManifest,
    IngestSettings,
    import_tokenizer,
    land,
    load_tokenizer,
    read_manifest,
)
from perennial.corpora.document_spans import read_spans
from perennial.corpora.manifest import (
    DocumentsFile,
    HoldoutFile,
    QuarantineFile,
    StoredFile,
    TokenIds,
)
from perennial.mixture import ReplayRule, stage_mix, weigh_parts
from perennial.mixture.provenance import trace_origins
from perennial.runs.job_factory import layout
from perennial.store import Store, open_store
from perennial.training.spikes.batch import find_documents
from tests.support.plain_ingest import ingest_plainly
from tests.support.small_tokenizers import byte_level_json

LENGTH = 128
DOMAINS = ["wiki"] * 2 + ["web"] * 5 + [""]
BANNER = "This banner of the site stands on every one of its pages."
SETTINGS = IngestSettings(
    sequence_length=LENGTH,
    seed=1,
    domain_field="source",
    near_duplicates=None,
    holdout_share=0.05,
    shard_tokens=4_000,
)
REPEATS: dict[str, Any] = {"duplicates": "drop", "fuzzy_duplicates": 0.8, "repeated_lines": 40}
PACKED = {"packing": "best-fit", "metadata": {"id": "id"}}
END = 0
_NUMBERS = count()


def documents() -> list[dict[str, str]]:
    """Texts of several domains; some come again in another one: equal, nearly so, or by a line."""
    draw, found = random.Random(1), []
    for number in range(200):
        words = " ".join(str(draw.randrange(10**6)) for _ in range(8 + number % 23))
        text = f"{number}\n{BANNER}\n{words}" if number % 10 == 0 else f"{number} {words}"
        found.append({"text": text, "source": draw.choice(DOMAINS)})
    long = [" ".join(str(draw.randrange(10**6)) for _ in range(80)) for _ in range(30)]
    for text in long:
        found.append({"text": text, "source": draw.choice(DOMAINS)})
        found.append({"text": f"{text} again", "source": draw.choice(DOMAINS)})
    found += [{**document, "source": "web"} for document in found[:15]]
    found.append({"text": f"{BANNER}\n{BANNER}", "source": "wiki"})
    return [document | {"id": f"doc-{n}"} for n, document in enumerate(found)]


def ingested(folder: Path, lines: list[dict[str, Any]], **more: Any) -> tuple[Store, Any]:
    """A store with the lines as corpus "mixed"; its manifest was proved as `verify` does."""
    folder = folder / str(next(_NUMBERS))
    folder.mkdir()
    store, inbox = open_store(folder / "store"), open_store(folder / "inbox")
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    land(inbox, "mixed", [file])
    (folder / "tokenizer.json").write_text(json.dumps(byte_level_json(400)))
    tokenizer = import_tokenizer(store, str(folder / "tokenizer.json"))
    assert tokenizer.end_of_document == END
    manifest = ingest_plainly(store, inbox, "mixed", SETTINGS.model_copy(update=more))
    readers: dict[type[StoredFile], Reader] = {
        DocumentsFile: read_documents,
        HoldoutFile: read_holdout,
        QuarantineFile: read_quarantine,
    }
    contents: list[Contents] = []
    for stored in manifest.files:
        read = readers.get(type(stored))
        with store.open(f"corpora/mixed/{stored.file}") as stream:
            contents += [read(stream)] if read else []
    spec = {"corpora": {"sequence_length": LENGTH}, "seed": 1}
    assert not list(check_manifest("corpora/mixed/manifest.json", manifest, spec, tokenizer))
    assert not check_contents("corpora/mixed/manifest.json", manifest, contents)
    assert read_manifest(store, "mixed") == manifest
    return store, manifest


def rows_of(store: Store, manifest: CorpusManifest) -> np.ndarray[Any, Any]:
    rows = []
    for shard in manifest.shards:
        with store.open(f"corpora/mixed/{shard.file}") as stream:
            rows += pq.read_table(stream)["tokens"].to_pylist()
    return np.frombuffer(b"".join(rows), "<u2").reshape(-1, LENGTH)


def removed(store: Store, manifest: CorpusManifest) -> set[tuple[int, str, str]]:
    texts = (store.read(f"corpora/mixed/{f.file}").decode() for f in manifest.quarantine)
    records = [json.loads(line) for text in texts for line in text.splitlines()]
    assert len(records) == sum(file.records for file in manifest.quarantine)
    return {(record["offset"], record["reason"], record["detail"]) for record in records}


def trained(store: Store, manifest: CorpusManifest) -> dict[str, str | None]:
    """The id that was kept of every document in the rows, by the digest of its text."""
    spans = read_spans(store, manifest, range(manifest.rows))
    return {span.digest: span.metadata.get("id") for span in spans}


@pytest.mark.parametrize("piece_bytes", [5_000, 64 << 20])
def test_I5_repeats_between_parts_are_dropped_as_in_a_corpus_that_is_a_whole(
    tmp_path: Path, piece_bytes: int
) -> None:
    more = REPEATS | PACKED | {"piece_bytes": piece_bytes}
    whole_store, whole = ingested(tmp_path, documents(), **more)
    store, manifest = ingested(tmp_path, documents(), **more, parts="domain")
    assert [part.name for part in manifest.parts] == ["", "web", "wiki"]
    assert len(manifest.shards) > 3
    counts = manifest.counts
    assert counts.duplicate_documents == 15
    assert 20 < counts.quarantined["fuzzy-duplicate"] <= 30  # held-out ones are not compared
    assert counts.quarantined["repeated-lines"] == 1
    assert counts.repeated_line_documents > 10
    packed = {"padding_tokens", "remainder_tokens", "row_tokens"}
    assert counts.model_dump(exclude=packed) == whole.counts.model_dump(exclude=packed)
    assert removed(store, manifest) == removed(whole_store, whole)
    assert trained(store, manifest) == trained(whole_store, whole)
    assert len(trained(store, manifest)) == counts.trained_documents


def test_rows_of_a_part_are_packed_by_themselves_and_lead_back_to_its_documents(
    tmp_path: Path,
) -> None:
    store, manifest = ingested(tmp_path, documents(), **PACKED, parts="domain")
    rows, counts = rows_of(store, manifest), manifest.counts
    bounds = np.cumsum([0, *(part.rows for part in manifest.parts)]).tolist()
    assert bounds[-1] == len(rows) == manifest.rows
    by_digest = {hashlib.sha256(d["text"].encode()).hexdigest()[:16]: d for d in documents()}
    decode = load_tokenizer(store).build().decode
    for part, (first, end) in zip(manifest.parts, pairwise(bounds), strict=True):
        spans = list(read_spans(store, manifest, range(first, end)))
        assert {span.row for span in spans} == set(range(first, end))
        assert {span.metadata.get("domain", "") for span in spans} == {part.name}
        assert len({span.offset for span in spans}) == part.documents
        for span in spans:
            ids = rows[span.row, span.start : span.start + span.tokens].tolist()
            text = by_digest[span.digest]["text"]
            assert decode(ids) in text
    padding = (rows[:, 1:] == END) & (rows[:, :-1] == END)
    assert int(padding.sum()) == counts.padding_tokens > 0
    assert rows.size == counts.row_tokens + counts.padding_tokens
    assert sum(part.remainder_tokens for part in manifest.parts) == counts.remainder_tokens
    # A step of a stage that weighs the parts leads back to as many rows of each.
    parts = weigh_parts("mixed", manifest.part_rows, {"": 0, "web": 1, "wiki": 3})
    mix = stage_mix([], {"mixed": parts}, 4, 8, ReplayRule(share=0.0))
    for step in range(4):
        origins = trace_origins(mix, {"mixed": layout(manifest)}, step)
        spans = find_documents(store, origins)["mixed"]
        by_row = {span.row: span.metadata["domain"] for span in spans}
        assert Counter(by_row.values()) == {"web": 2, "wiki": 6}


@pytest.mark.parametrize("parts", ["none", "domain"])
def test_an_end_right_after_an_end_among_ids_is_an_empty_document_and_padding_alone_is_padding(
    tmp_path: Path, parts: str
) -> None:
    draw = random.Random(2)
    found = [[draw.randrange(1, 300) for _ in range(5 + n % 40)] for n in range(120)]
    lines: list[dict[str, Any]] = []
    for number, (one, other) in enumerate(zip(found[::2], found[1::2], strict=True)):
        # An empty document before, between and behind them; and one whose list is nothing else.
        ids = [END, *one, END, END, *other, END, END]
        source = DOMAINS[number % len(DOMAINS)]
        lines.append({"input_ids": ids, "id": f"doc-{number}", "source": source})
    lines.append({"input_ids": [END] * LENGTH, "id": "empty", "source": "web"})
    tokens = TokenIds(dtype="uint16", vocabulary=400, end_of_document=END)
    more: dict[str, Any] = {"tokens": tokens, "parts": parts, "holdout_share": 0.0}
    store, manifest = ingested(tmp_path, lines, **PACKED, **more)
    counts, rows = manifest.counts, rows_of(store, manifest)
    assert counts.trained_documents == len(found)
    assert counts.quarantined == {"empty-text": 3 * len(lines[:-1]) + LENGTH}
    assert counts.tokens == counts.row_tokens == sum(map(len, found)) + len(found)
    padding = (rows[:, 1:] == END) & (rows[:, :-1] == END)
    assert int(padding.sum()) == counts.padding_tokens > 0
    pieces = [tuple(map(int, piece)) for row in rows for piece in np.split(row, ends_of(row))]
    assert Counter(p for p in pieces if p != (END,)) == Counter((*ids, END) for ids in found)
    spans = list(read_spans(store, manifest, range(manifest.rows)))
    assert {span.metadata["id"] for span in spans} == {line["id"] for line in lines[:-1]}
    plain_store, plain = ingested(tmp_path, lines, **more)
    rows = rows_of(plain_store, plain)
    assert not ((rows[:, 1:] == END) & (rows[:, :-1] == END)).any()
    assert plain.counts.padding_tokens == 0


def ends_of(row: np.ndarray[Any, Any]) -> Any:
    """The places behind the ends of a row, but the last one where the row ends there."""
    places = np.flatnonzero(row == END) + 1
    return places[places < len(row)]
