"""What stands between documents: in rows, held-out documents, samples and tasks alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest

from perennial.audit.counts import check_manifest
from perennial.config.training import ModelSpec
from perennial.corpora import (
    CorpusManifest,
    IngestSettings,
    RunTokenizer,
    import_tokenizer,
    land,
    load_tokenizer,
    read_base_files,
    read_holdout,
    read_manifest,
    read_tokenizer,
)
from perennial.corpora.compatibility import check_same_settings
from perennial.corpora.release_tokenizer import release_files, settle_class
from perennial.evaluation.evaluate import run_tokenizer
from perennial.evaluation.heldout import read_documents
from perennial.store import Store, open_store
from perennial.training.job import Job
from perennial.training.join_probe import _heldout
from perennial.training.model.initial import _config_of
from tests.support.plain_ingest import ingest_plainly
from tests.support.refusal import refused
from tests.support.small_tokenizers import byte_level_json

SPECIALS = ("<|endoftext|>", "<|im_end|>", "<s>", "<|end_of_text|>", "<stop>")
END, TURN, BEGIN = 0, 1, 2
SETTINGS = IngestSettings(sequence_length=16, seed=0, holdout_share=0.2)
TEXTS = [f"document {n} has its own words: {'spam ' * (n % 7)}{n * n}" for n in range(60)]


def folder_of(folder: Path, without: tuple[str, ...] = (), **config: Any) -> Path:
    """Return a Hugging Face folder, whose vocabulary may lack some of the special tokens."""
    specials = tuple(token for token in SPECIALS if token not in without)
    folder.mkdir(parents=True, exist_ok=True)
    content = byte_level_json(400, specials)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("named", "without", "chosen"),
    [
        ("<|im_end|>", (), "<|endoftext|>"),
        ("<|im_end|>", ("<|endoftext|>",), "<|end_of_text|>"),
        ("<|im_end|>", ("<|endoftext|>", "<|end_of_text|>"), "<|im_end|>"),
        ("<stop>", (), "<stop>"),
        ("<|end_of_text|>", (), "<|end_of_text|>"),
        ("<unknown>", (), "<|endoftext|>"),
        (None, (), "<|endoftext|>"),
    ],
)
def test_the_end_of_a_turn_in_a_chat_is_the_end_of_a_document_last(
    tmp_path: Path, named: str | None, without: tuple[str, ...], chosen: str
) -> None:
    folder = folder_of(tmp_path, without, eos_token=named)
    assert read_tokenizer(folder).manifest.end_of_document_text == chosen


def test_the_run_file_names_both_tokens(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", eos_token="<|endoftext|>")
    store = open_store(tmp_path / "store")
    imported = import_tokenizer(store, folder, "<|im_end|>", "<s>")
    assert (imported.end_of_document, imported.begin_of_document) == (TURN, BEGIN)
    assert imported.describe_borders() == (
        "documents end with <|im_end|> (id 1) and begin with <s> (id 2)"
    )
    assert import_tokenizer(store, folder, None, "<s>") == imported == load_tokenizer(store)
    assert import_tokenizer(store, folder) == imported
    with refused("tokenizer-differs", "end_of_document"):
        import_tokenizer(store, folder, "<|endoftext|>", "<s>")
    with refused("tokenizer-differs", "begin_of_document"):
        import_tokenizer(store, folder, "<|im_end|>", "")


def test_a_token_that_there_is_not_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    for field, borders in (
        ("end_of_document", ("<bos>", None)),
        ("begin_of_document", (None, "<bos>")),
    ):
        with refused("token-unknown", f"tokenizer.{field}"):
            read_tokenizer(folder, *borders)
    with refused("begin-is-end"):
        read_tokenizer(folder, "<s>", "<s>")


def test_a_template_that_no_training_follows_is_told(tmp_path: Path) -> None:
    assert read_tokenizer(folder_of(tmp_path / "plain")).describe_borders() == (
        "documents end with <|endoftext|> (id 0); nothing stands before them"
    )
    folder = folder_of(tmp_path / "served")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [BEGIN], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert read_tokenizer(folder).describe_borders().endswith("begin with <s> (id 2)")
    told = read_tokenizer(folder, begin_of_document="").describe_borders()
    assert told.endswith("needs tokenizer.begin_of_document: '<s>'")
    plain = read_tokenizer(folder, begin_of_document="").build()
    assert plain.encode("a").ids == plain.encode("a", add_special_tokens=False).ids


@pytest.fixture(scope="module", params=[None, "<s>"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store with one corpus, whose documents begin with a token or with nothing."""
    folder = tmp_path_factory.mktemp("borders")
    store, inbox = open_store(folder / "store"), open_store(folder / "inbox")
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    land(inbox, "en", [file])
    import_tokenizer(store, folder_of(folder / "hf"), None, request.param)
    ingest_plainly(store, inbox, "en", SETTINGS)
    return store


def _rows(store: Store, manifest: CorpusManifest) -> list[int]:
    ids: list[int] = []
    for shard in manifest.shards:
        with store.open(f"corpora/en/{shard.file}") as stream:
            for row in pq.read_table(stream)["tokens"].to_pylist():
                ids += np.frombuffer(row, dtype="<u2").tolist()
    return ids


def test_rows_hold_a_begin_before_every_document(run: Store) -> None:
    manifest, tokenizer = read_manifest(run, "en"), load_tokenizer(run)
    before = [] if tokenizer.begin_of_document is None else [BEGIN]
    assert manifest.begin_of_document == tokenizer.begin_of_document
    ids = _rows(run, manifest)
    ends = [at for at, token in enumerate(ids) if token == END]
    assert [ids[at + 1 : at + 1 + len(before)] for at in ends[:-1]] == [before] * (len(ends) - 1)
    assert ids[: len(before)] == before
    assert ids.count(BEGIN) in {len(ends) * len(before), (len(ends) + 1) * len(before)}
    plain = tokenizer.build()
    texts = {
        plain.decode(ids[start + 1 + len(before) : end])
        for start, end in zip([-1, *ends[:-1]], ends, strict=True)
    }
    assert texts <= set(TEXTS)


def test_counts_add_up_and_tokens_per_byte_are_of_the_text_alone(run: Store) -> None:
    manifest, tokenizer = read_manifest(run, "en"), load_tokenizer(run)
    spec = {"corpora": {"sequence_length": 16}, "seed": 0}
    assert not list(check_manifest("corpora/en/manifest.json", manifest, spec, tokenizer))
    plain = tokenizer.build()
    tokens = sum(len(plain.encode(text, add_special_tokens=False).ids) for text in TEXTS)
    assert manifest.tokens_per_byte == tokens / sum(len(text.encode()) for text in TEXTS)


def test_held_out_documents_are_scored_from_what_stands_before_them_in_training(
    run: Store,
) -> None:
    tokenizer = load_tokenizer(run)
    begin = tokenizer.begin_of_document
    documents = read_documents(run, "en", 100)
    assert len(documents) > 5
    for document in documents:
        assert document.before == (END if begin is None else BEGIN)
        assert document.tokens[-1] == END
        assert tokenizer.build().decode(document.tokens[:-1].tolist()) in TEXTS


def test_rows_that_show_how_a_stage_joins_are_packed_as_in_training(run: Store) -> None:
    class Sized:
        sequence_length = 16

    rows = _heldout(run, "en", cast("Job", Sized()), 3)
    begin = load_tokenizer(run).begin_of_document
    before = [] if begin is None else [begin]
    expected: list[int] = []
    for document in read_holdout(run, read_manifest(run, "en")):
        expected += [*before, *document.tokens.tolist()]
    assert rows.shape == (3, 16)
    assert rows.ravel().tolist() == expected[:48]


def test_prompts_and_tasks_begin_as_documents_do(run: Store) -> None:
    from lm_eval.models.huggingface import HFLM

    begin = load_tokenizer(run).begin_of_document
    tokenizer = run_tokenizer(run)
    plain = load_tokenizer(run).build().encode("a prompt", add_special_tokens=False).ids
    expected = plain if begin is None else [BEGIN, *plain]
    assert tokenizer("a prompt")["input_ids"] == expected
    harness = HFLM.__new__(HFLM)  # as it is made of a model, without one
    harness.tokenizer, harness.backend = tokenizer, "causal"
    harness.add_bos_token, harness.custom_prefix_token_id = None, None
    assert harness.tok_encode("a prompt") == expected
    assert harness.prefix_token_id == (END if begin is None else BEGIN)


def test_a_release_begins_a_text_as_training_did(run: Store, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    run_own = load_tokenizer(run)
    begin = run_own.manifest.begin_of_document_text
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    base = read_base_files(run, run_own)
    for name, data in release_files(run_own, base, begin_of_document=begin).items():
        (tmp_path / name).write_bytes(data)
    settle_class(tmp_path)
    released = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert released("a prompt")["input_ids"] == run_tokenizer(run)("a prompt")["input_ids"]
    assert released.eos_token_id == END
    assert released.bos_token_id == (None if begin is None else BEGIN)


@pytest.mark.parametrize(
    ("given", "begin", "expected"),
    [({}, None, END), ({}, BEGIN, BEGIN), ({"bos_token_id": 7}, 2, 7)],
)
def test_a_new_model_names_the_begin(
    given: dict[str, int], begin: int | None, expected: int
) -> None:
    class Named:
        model = ModelSpec(architecture="gpt_neox", config=given)
        vocabulary, sequence_length = 400, 16
        end_of_document, begin_of_document = END, begin

    assert _config_of(cast("Job", Named())).bos_token_id == expected


def test_a_corpus_with_other_borders_is_refused(run: Store, tmp_path: Path) -> None:
    own = load_tokenizer(run)
    begin = None if own.begin_of_document is not None else "<s>"
    other: RunTokenizer = read_tokenizer(folder_of(tmp_path), None, begin)
    assert other.fingerprint == own.fingerprint
    check_same_settings(run, "en", own, SETTINGS)
    with refused("ingested-differently", "begin_of_document"):
        check_same_settings(run, "en", other, SETTINGS)
