"""Corpora that are packed by best fit, and documents whose middle is at their end."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from perennial.audit.counts import check_manifest
from perennial.config import RunSpec
from perennial.corpora import (
    CorpusManifest,
    IngestSettings,
    import_tokenizer,
    land,
    load_tokenizer,
    read_holdout,
    read_manifest,
)
from perennial.corpora.fill_in_the_middle import find_fill_tokens
from perennial.corpora.manifest import FillInTheMiddle
from perennial.store import Store, open_store
from tests.support.plain_ingest import ingest_plainly
from tests.support.refusal import refused
from tests.support.small_tokenizers import byte_level_json
from tests.support.tiny_run import tiny_run

MARKS = {"prefix": "<|fim_prefix|>", "middle": "<|fim_middle|>", "suffix": "<|fim_suffix|>"}
SPECIALS = ("<|endoftext|>", "<s>", *MARKS.values())
END, BEGIN, PREFIX, MIDDLE, SUFFIX = range(5)
FILL = FillInTheMiddle(share=0.5, spm_share=0.5, **MARKS)
TEXTS = [f"document {n} has its own words: {'spam ' * (n % 17)}{n * n} à l'été" for n in range(200)]
LENGTH = 160
_NUMBERS = count()


def ingested(
    folder: Path, begin: str | None = None, **settings: Any
) -> tuple[Store, CorpusManifest]:
    """A store with the texts as one corpus."""
    folder = folder / str(next(_NUMBERS))
    folder.mkdir()
    store, inbox = open_store(folder / "store"), open_store(folder / "inbox")
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    land(inbox, "en", [file])
    (folder / "tokenizer.json").write_text(json.dumps(byte_level_json(400, SPECIALS)))
    import_tokenizer(store, folder / "tokenizer.json", None, begin)
    own = {"sequence_length": LENGTH, "seed": 0, "holdout_share": 0.2} | settings
    return store, ingest_plainly(store, inbox, "en", IngestSettings(**own))


def rows_of(store: Store, manifest: CorpusManifest) -> np.ndarray:
    rows = []
    for shard in manifest.shards:
        with store.open(f"corpora/en/{shard.file}") as stream:
            rows += pq.read_table(stream)["tokens"].to_pylist()
    return np.frombuffer(b"".join(rows), "<u2").reshape(-1, manifest.sequence_length)


def documents_of(rows: np.ndarray) -> list[list[int]]:
    """Documents that lie whole in a row, without their ends."""
    documents = []
    for row in rows.tolist():
        ends = [place for place, token in enumerate(row) if token == END]
        starts = [0, *(end + 1 for end in ends)]
        documents += [row[a:b] for a, b in zip(starts, ends, strict=False) if b > a]
    return documents


@pytest.mark.parametrize("begin", [None, "<s>"])
def test_I5_a_corpus_packed_by_best_fit_accounts_for_every_token(
    tmp_path: Path, begin: str | None
) -> None:
    _, concat = ingested(tmp_path, begin)
    fitted_store, manifest = ingested(tmp_path, begin, packing="best-fit")
    counts = manifest.counts
    assert (counts.cut_documents, concat.counts.padding_tokens) == (0, 0)
    assert concat.counts.cut_documents > 50
    assert 0 < counts.padding_tokens < 0.1 * counts.row_tokens
    assert manifest.tokens == counts.row_tokens
    assert manifest.rows * LENGTH == counts.row_tokens + counts.padding_tokens
    assert counts.tokens == concat.counts.tokens
    spec = {"corpora": {"sequence_length": LENGTH}, "seed": 0}
    tokenizer = load_tokenizer(fitted_store)
    assert not list(check_manifest("corpora/en/manifest.json", manifest, spec, tokenizer))
    altered = manifest.model_copy(
        update={"counts": counts.model_copy(update={"padding_tokens": counts.padding_tokens - 1})}
    )
    assert list(check_manifest("corpora/en/manifest.json", altered, spec, tokenizer))
    before = 0 if begin is None else 1
    plain = tokenizer.build()
    texts = [plain.decode(ids[before:]) for ids in documents_of(rows_of(fitted_store, manifest))]
    held = [plain.decode(d.tokens[:-1].tolist()) for d in read_holdout(fitted_store, manifest)]
    assert sorted(texts + held) == sorted(TEXTS)
    assert read_manifest(fitted_store, "en") == manifest  # sealed with its counts
    assert manifest.tokens_per_byte == concat.tokens_per_byte


def test_a_corpus_of_the_defaults_has_the_digest_that_it_always_had(tmp_path: Path) -> None:
    _, manifest = ingested(tmp_path)
    older = json.loads(manifest.model_dump_json())
    del older["settings"]["packing"], older["settings"]["fill_in_the_middle"]
    del older["counts"]["cut_documents"]
    assert CorpusManifest.model_validate(older).compute_digest() == manifest.digest


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_a_share_of_the_documents_has_its_middle_at_its_end(tmp_path: Path, packing: str) -> None:
    _, plain_manifest = ingested(tmp_path, packing=packing)
    filled_store, manifest = ingested(tmp_path, packing=packing, fill_in_the_middle=FILL)
    counts = manifest.counts
    trained = counts.trained_documents
    assert 0.35 * trained < counts.filled_documents < 0.65 * trained
    assert counts.held_out_documents == plain_manifest.counts.held_out_documents
    assert all(
        one.sha256 == other.sha256
        for one, other in zip(manifest.holdout, plain_manifest.holdout, strict=True)
    )
    rows = rows_of(filled_store, manifest)
    assert packing == "concat" or np.isin(rows, PREFIX).sum() == counts.filled_documents
    decode = load_tokenizer(filled_store).build().decode
    kinds = {"psm": 0, "spm": 0, "plain": 0}
    for ids in documents_of(rows):
        if PREFIX not in ids or ids[0] != PREFIX:
            kinds["plain"] += 1
            continue
        suffix, middle = ids.index(SUFFIX), ids.index(MIDDLE)
        last = decode(ids[suffix + 1 : middle])
        if suffix == 1:
            kinds["spm"] += 1
            text = decode(ids[middle + 1 :]) + last
        else:
            kinds["psm"] += 1
            text = decode(ids[1:suffix]) + decode(ids[middle + 1 :]) + last
        assert text in TEXTS
    assert min(kinds.values()) > 5
    again = ingested(tmp_path, packing=packing, fill_in_the_middle=FILL)[1]
    assert again.digest == manifest.digest
    other = ingested(tmp_path, packing=packing, fill_in_the_middle=FILL, seed=1)[1]
    assert other.counts.filled_documents != counts.filled_documents
    assert manifest.tokens_per_byte == pytest.approx(plain_manifest.tokens_per_byte, rel=0.1)


def test_a_token_that_the_tokenizer_lacks_is_refused_with_those_that_it_has(
    tmp_path: Path,
) -> None:
    store, _ = ingested(tmp_path)
    named = FILL.model_copy(update={"middle": "<fim_middle>"})
    with refused("token-unknown", "corpora.fill_in_the_middle.middle") as caught:
        find_fill_tokens(load_tokenizer(store), named)
    assert "<|fim_middle|>" in caught.value.remedy
    spec = tiny_run(tmp_path)
    spec["corpora"] = spec.get("corpora", {}) | {"fill_in_the_middle": {}}
    with pytest.raises(ValueError, match="needs a tokenizer that has tokens for it"):
        RunSpec.model_validate(spec)
    spec["corpora"]["fill_in_the_middle"] = {"prefix": "<a>", "middle": "<a>"}
    with pytest.raises(ValueError, match="three different tokens"):
        RunSpec.model_validate(spec)
