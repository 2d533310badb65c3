"""Corpora of token ids: the rows of the same text, counted and split as text is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest

from perennial.audit.counts import check_manifest
from perennial.config import RunSpec
from perennial.config.corpora import DoneToText
from perennial.controller.context import Workspace
from perennial.controller.declared_ids import declared_ids
from perennial.corpora import (
    CorpusManifest,
    IngestSettings,
    RunTokenizer,
    fit_warning,
    import_tokenizer,
    land,
    read_holdout,
    read_manifest,
)
from perennial.corpora.encoders import split_documents
from perennial.corpora.manifest import TokenIds
from perennial.errors import InputError
from perennial.evaluation.compare import Model, common_corpora, value_of
from perennial.evaluation.finite import drop_not_finite, split_finite
from perennial.evaluation.loss import DocumentLoss, heldout_loss
from perennial.store import Store, open_store
from tests.support.id_files import id_files, lines, write_all
from tests.support.plain_ingest import ingest_plainly
from tests.support.small_tokenizers import byte_level_json
from tests.support.tiny_run import tiny_run

TEXTS = list(dict.fromkeys(text[:700] for text in topics.values()))[:60]
LENGTH = 32
TEXT = IngestSettings(
    sequence_length=LENGTH, seed=1, near_duplicates=None, shard_tokens=8_000, holdout_share=0.1
)
FORMS = ["lines", "parquet of packed rows", "arrow", "npy", "bin", "megatron"]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokens = ("<|endoftext|>", "<|begin|>")
    path.write_text(json.dumps(byte_level_json(600, tokens)))
    return path


def ids_settings(tokenizer: RunTokenizer, **changes: Any) -> IngestSettings:
    tokens = TokenIds(
        dtype="uint16",
        vocabulary=tokenizer.vocabulary,
        end_of_document=tokenizer.end_of_document,
        begin_of_document=tokenizer.begin_of_document,
    )
    return TEXT.model_copy(update={"tokens": tokens, **changes})


def encode(tokenizer: RunTokenizer, texts: list[str]) -> list[list[int]]:
    encoder = tokenizer.build_encoder()
    return [encoder.encode(text, add_special_tokens=False).ids for text in texts]


def trained(store: Store, manifest: CorpusManifest) -> Counter[bytes]:
    """The documents that lie whole in the rows of a shard."""
    found: Counter[bytes] = Counter()
    for shard in manifest.shards:
        column = pq.read_table(Path(store.url) / f"corpora/{manifest.name}/{shard.file}")["tokens"]
        ids = np.frombuffer(b"".join(column.to_pylist()), dtype="<u2")
        found.update(part.tobytes() for part in split_documents(ids, manifest.end_of_document))
    return found


def held(store: Store, manifest: CorpusManifest) -> list[bytes]:
    return [document.tokens.tobytes() for document in read_holdout(store, manifest)]


@pytest.mark.parametrize("begin", [None, "<|begin|>"])
def test_the_same_documents_as_text_and_as_ids_of_any_form_give_the_same_rows(
    tmp_path: Path, tokenizer_file: Path, begin: str | None
) -> None:
    store, inbox = open_store(tmp_path / "store"), open_store(tmp_path / "inbox")
    tokenizer = import_tokenizer(store, str(tokenizer_file), begin_of_document=begin)
    ids = encode(tokenizer, TEXTS)
    if begin is not None:
        ids = [[tokenizer.begin_of_document or 0, *document] for document in ids]
    end = tokenizer.end_of_document
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    # One shard, so that every document but the last lies whole in its rows; nothing held out, as
    # that is decided by a hash of what a document is.
    whole = {"holdout_share": 0.0, "shard_tokens": 1 << 20}
    land(inbox, "text", [tmp_path / "t.jsonl"])
    of_text = ingest_plainly(store, inbox, "text", TEXT.model_copy(update=whole))
    expected = trained(store, of_text)
    assert len(expected) >= len(TEXTS) - 2
    for number, form in enumerate(FORMS):
        name = f"ids{number}"
        land(inbox, name, write_all(tmp_path / name, id_files(ids, end)[form]))
        manifest = ingest_plainly(store, inbox, name, ids_settings(tokenizer, **whole))
        counts, right = manifest.counts, of_text.counts
        assert counts.documents == counts.trained_documents == len(TEXTS)
        assert (counts.tokens, manifest.rows) == (right.tokens, of_text.rows)
        assert counts.trained_bytes == counts.held_out_bytes == 0
        assert (manifest.engine, manifest.tokens_per_byte) == ("ids", None)
        assert fit_warning(of_text, manifest) is None
        # The last rows differ by the document that their order puts last.
        difference = (trained(store, manifest) - expected) + (expected - trained(store, manifest))
        assert difference.total() <= 2


def test_ids_are_split_compared_and_counted_as_text_is(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    store, inbox = open_store(tmp_path / "store"), open_store(tmp_path / "inbox")
    tokenizer = import_tokenizer(store, str(tokenizer_file))
    ids = encode(tokenizer, TEXTS)
    bad = [[1, 2, 10**6], [-4]]
    (tmp_path / "a.jsonl").write_bytes(lines([*ids, *ids[:5], *bad, []]))
    land(inbox, "a", [tmp_path / "a.jsonl"])
    settings = ids_settings(tokenizer, duplicates="drop", max_bad_share=1.0)
    manifest = ingest_plainly(store, inbox, "a", settings)
    counts = manifest.counts.check()
    assert counts.documents == len(TEXTS) + 8
    assert counts.duplicate_documents == counts.repeats == 5
    assert counts.quarantined == {"empty-text": 1, "token-out-of-vocabulary": 2}
    assert counts.held_out_documents > 1
    out = held(store, manifest)
    assert not set(out) & set(trained(store, manifest))
    assert {d.size_bytes for d in read_holdout(store, manifest)} == {0}
    # The same documents are held out of another corpus, whatever its form.
    packed = id_files(ids, tokenizer.end_of_document)["npy"]
    land(inbox, "b", write_all(tmp_path / "b", packed))
    again = ingest_plainly(store, inbox, "b", ids_settings(tokenizer))
    assert sorted(held(store, again)) == sorted(out)
    key = "corpora/a/manifest.json"
    spec = {"corpora": {"sequence_length": LENGTH}, "seed": 1}
    assert not list(check_manifest(key, manifest, spec, tokenizer))
    assert read_manifest(store, "a") == manifest


def test_a_loss_on_ids_has_no_bits_per_byte_and_is_kept_as_a_number() -> None:
    losses = [DocumentLoss(12.0, 4, 0), DocumentLoss(9.0, 3, 0)]
    loss = heldout_loss("ids", losses)
    assert (loss.nats_per_token, loss.bits_per_byte) == (3.0, None)
    assert split_finite({"ids": loss}) == ({"ids": loss}, ())
    stored = json.loads(json.dumps({"ids": vars(loss)}))
    assert drop_not_finite(stored) == stored
    text = heldout_loss("text", [DocumentLoss(12.0, 4, 10)])
    lost = {**vars(text), "bits_per_byte": None}
    assert drop_not_finite({"text": lost}) == {}


def run_with(folder: Path, tokens: dict[str, Any] | None, **sections: Any) -> Workspace:
    document = tiny_run(folder) | {k: v for k, v in sections.items() if k == "tokenizer"}
    document["corpora"] |= {"read": {"ids-*": {"tokens": tokens}}} | sections.get("corpora", {})
    return Workspace(RunSpec.model_validate(document), "run.yaml")


def test_ids_are_those_of_the_runs_tokenizer_or_refused_with_it(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    own = {"path": str(tokenizer_file)}
    tokenizer = import_tokenizer(open_store(tmp_path / "x"), str(tokenizer_file))
    for named in (tokenizer.fingerprint, str(tokenizer_file)):
        work = run_with(tmp_path, {"tokenizer": named, "vocabulary": 50304}, tokenizer=own)
        found = declared_ids(work, "ids-a", is_decided=False)
        assert found == ids_settings(tokenizer).tokens
        assert declared_ids(work, "text", is_decided=False) is None
    work = run_with(tmp_path, {"tokenizer": str(tmp_path / "no.json")}, tokenizer=own)
    with pytest.raises(InputError, match="there is no such file") as wrong:
        declared_ids(work, "ids-a", is_decided=False)
    assert wrong.value.field == "corpora.read.ids-a.tokens.tokenizer"
    work = run_with(tmp_path, {"tokenizer": "0" * 64}, tokenizer=own)
    with pytest.raises(InputError, match=tokenizer.fingerprint) as wrong:
        declared_ids(work, "ids-a", is_decided=False)
    assert (wrong.value.code, wrong.value.field) == (
        "ids-of-another-tokenizer",
        "corpora.read.ids-a.tokens.tokenizer",
    )
    # A tokenizer that will be trained on text has no ids yet.
    work = run_with(tmp_path, {"tokenizer": tokenizer.fingerprint})
    with pytest.raises(InputError, match="trained on the text") as wrong:
        declared_ids(work, "ids-a", is_decided=False)
    assert wrong.value.code == "ids-without-tokenizer"


def test_what_is_done_to_text_alone_is_left_out_by_name_or_refused(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    own = {"path": str(tokenizer_file)}
    declared: dict[str, Any] = {"tokenizer": str(tokenizer_file)}
    asked: dict[str, Any] = {
        "decontaminate": ["questions.jsonl"],
        "steps": [{"kind": "c4-quality"}],
        "fuzzy_duplicates": 0.8,
        "repeated_lines": 100,
        "fill_in_the_middle": {},
    }
    assert {*asked} == {*get_args(DoneToText)}
    for what, value in asked.items():
        work = run_with(tmp_path, declared, tokenizer=own, corpora={what: value})
        with pytest.raises(InputError, match=f"corpora.{what} is done to text") as wrong:
            declared_ids(work, "ids-a", is_decided=False)
        assert wrong.value.code == "ids-are-not-text"
        work = run_with(
            tmp_path, declared | {"without": [what]}, tokenizer=own, corpora={what: value}
        )
        assert declared_ids(work, "ids-a", is_decided=False) is not None


def test_ids_compare_with_other_runs_under_one_tokenizer_alone() -> None:
    def model(run: str, text_tokens: int) -> Model:
        losses = {
            "ids": heldout_loss("ids", [DocumentLoss(12.0, 4, 0)]),
            "text": heldout_loss("text", [DocumentLoss(12.0, text_tokens, 10)]),
        }
        return Model(run, run, run, 1, False, losses, {})

    assert common_corpora([model("a", 4), model("b", 4)]) == ("ids", "text")
    assert common_corpora([model("a", 4), model("b", 5)]) == ("text",)
    with pytest.raises(ValueError, match="bytes of ids are not known"):
        value_of(model("a", 4).losses["ids"], in_nats=False)
