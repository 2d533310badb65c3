"""A corpus whose domains are its parts: rows of one part each, and every document counted."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from perennial.audit.counts import check_manifest
from perennial.config.corpora import CorporaSpec
from perennial.corpora import (
    CorpusManifest,
    IngestSettings,
    import_tokenizer,
    land,
    load_tokenizer,
    read_manifest,
)
from perennial.corpora.ingest.domains import MOST_PARTS, check_parts
from perennial.corpora.ingest.partition import make_layout, plan_shards
from perennial.errors import InputError
from perennial.store import Store, open_store
from tests.support.plain_ingest import ingest_plainly
from tests.support.small_tokenizers import byte_level_json

DOMAINS = ["wiki"] * 2 + ["web"] * 12 + [""] * 2
SETTINGS = IngestSettings(
    sequence_length=32,
    seed=1,
    domain_field="source",
    parts="domain",
    duplicates="drop",
    shard_tokens=6_000,
    near_duplicates=None,
)


def documents() -> list[dict[str, str]]:
    """Texts that begin with their domain; some of them occur twice, one is a part of its own."""
    draw, found = random.Random(1), []
    for number in range(800):
        domain = draw.choice(DOMAINS)
        text = f"{domain or 'none'} {number} " + " ".join(
            str(draw.randrange(10**6)) for _ in range(12)
        )
        found.append({"text": text} | ({"source": domain} if domain else {}))
    # Equal texts of two domains: the first one stays.
    again = {**found[5], "source": "web"}
    return [*found, *found[:20], again, {"text": "tiny", "source": "tiny"}]


def prepared(folder: Path, settings: IngestSettings = SETTINGS) -> tuple[Store, CorpusManifest]:
    """A store with the documents ingested as corpus "mixed"."""
    folder.mkdir()
    lines = [json.dumps(document) for document in documents()]
    (folder / "a.jsonl").write_text("\n".join(lines[:300]) + "\n{broken\n")
    (folder / "b.jsonl").write_text("\n".join(lines[300:]) + "\n")
    store, inbox = open_store(folder / "store"), open_store(folder / "inbox")
    land(inbox, "mixed", [folder / "a.jsonl", folder / "b.jsonl"])
    (folder / "tokenizer.json").write_text(json.dumps(byte_level_json(400)))
    import_tokenizer(store, str(folder / "tokenizer.json"))
    return store, ingest_plainly(store, inbox, "mixed", settings)


def rows_of(store: Store, manifest: CorpusManifest) -> np.ndarray[Any, Any]:
    """All rows of a corpus `(rows, sequence)`, in order."""
    parts = []
    for shard in manifest.shards:
        column = pq.read_table(Path(store.url) / f"corpora/mixed/{shard.file}")["tokens"]
        parts += [np.frombuffer(row, dtype="<u2") for row in column.to_pylist()]
    return np.stack(parts)


def test_every_row_holds_documents_of_one_part_and_the_counts_of_the_parts_add_up(
    tmp_path: Path,
) -> None:
    store, manifest = prepared(tmp_path / "a")
    assert [part.name for part in manifest.parts] == ["", "tiny", "web", "wiki"]
    rows, tokenizer = rows_of(store, manifest), load_tokenizer(store)
    ends = np.cumsum([0, *(part.rows for part in manifest.parts)]).tolist()
    assert ends[-1] == len(rows) == manifest.rows
    for part, (first, last) in zip(manifest.parts, pairwise(ends), strict=True):
        text = tokenizer.build_encoder().decode(
            rows[first:last].ravel().tolist(), skip_special_tokens=False
        )
        # What precedes the first end may be the end of a document, of which another shard has
        # the beginning.
        begun = [piece.split()[0] for piece in text.split("<|endoftext|>")[1:] if piece.split()]
        whole = [name for name in begun if name.isalpha()]
        assert set(whole) <= {part.name or "none"}
        assert bool(whole) == (part.name != "tiny")
    assert manifest.parts[1].rows == 0
    assert manifest.parts[1].remainder_tokens > 1
    counts = manifest.counts
    assert sum(part.documents for part in manifest.parts) == counts.trained_documents
    assert sum(part.remainder_tokens for part in manifest.parts) == counts.remainder_tokens
    assert counts.duplicate_documents == 21
    assert counts.quarantined == {"invalid-json": 1}
    assert counts.held_out_documents > 0
    spec = {"corpora": {"sequence_length": 32}, "seed": 1}
    assert not list(check_manifest("corpora/mixed/manifest.json", manifest, spec, tokenizer))
    lost = manifest.parts[0].model_copy(update={"rows": 1})
    torn = manifest.model_copy(update={"parts": (lost, *manifest.parts[1:])})
    (finding,) = check_manifest("corpora/mixed/manifest.json", torn, spec, tokenizer)
    assert "rows of parts" in finding.problem


def test_the_parts_are_the_same_whatever_the_pieces_and_documents_those_of_a_whole_corpus(
    tmp_path: Path,
) -> None:
    _, manifest = prepared(tmp_path / "a")
    _, small = prepared(tmp_path / "b", SETTINGS.model_copy(update={"piece_bytes": 5_000}))
    assert small.digest == manifest.digest
    assert small.shards == manifest.shards
    store, whole = prepared(tmp_path / "c", SETTINGS.model_copy(update={"parts": "none"}))
    assert read_manifest(store, "mixed").parts == ()
    assert "parts" not in whole.model_dump()
    for name in ("documents", "trained_documents", "held_out_documents", "tokens", "removed"):
        assert getattr(whole.counts, name) == getattr(manifest.counts, name)
    assert len(whole.shards) < len(manifest.shards) <= len(whole.shards) + 4


def test_a_held_out_document_that_was_dealt_to_a_part_is_not_trained(tmp_path: Path) -> None:
    # With so small a share none falls below the bound, which is raised to the lowest digest.
    _, manifest = prepared(tmp_path / "a", SETTINGS.model_copy(update={"holdout_share": 1e-12}))
    assert manifest.counts.held_out_documents == 1
    assert manifest.counts.check().documents == 823


def test_a_shard_of_a_part_is_not_larger_than_one_of_a_whole_corpus() -> None:
    layout = make_layout(10, 0.01)
    shards = plan_shards(layout, {"a": 70, "b": 25, "c": 5, "d": 0})
    assert [s.part for s in shards] == ["a"] * 10 + ["b"] * 3 + ["c"] + ["d"]
    assert [(s.first, s.end) for s in shards[10:]] == [(0, 4), (4, 8), (8, 10), (0, 10), (0, 10)]
    assert len(plan_shards(layout, None)) == 10


def test_too_many_domains_are_refused_by_some_of_their_names() -> None:
    check_parts("inbox", dict.fromkeys(map(str, range(MOST_PARTS)), 1))
    with pytest.raises(InputError, match="more than 256 domains, such as 'h000', 'h001'") as raised:
        check_parts("inbox", {f"h{number:03}": 1 for number in range(MOST_PARTS + 1)})
    assert raised.value.code == "too-many-parts"


def test_parts_need_the_field_of_the_domain() -> None:
    with pytest.raises(ValueError, match="parts: domain needs domain_field"):
        CorporaSpec.model_validate({"read": {"c4": {"parts": "domain"}}})
    spec = CorporaSpec.model_validate({"read": {"c4": {"parts": "domain", "domain_field": "x"}}})
    assert spec.for_corpus("c4").parts == "domain"
    assert spec.for_corpus("other").parts == "none"
