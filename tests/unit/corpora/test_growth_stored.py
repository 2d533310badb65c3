"""A grown tokenizer in the store: what has its ids, what is measured by it, what is released."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from perennial.corpora import (
    IngestSettings,
    RunTokenizer,
    check_same_run,
    find_tokenizer,
    grow_tokenizer,
    import_tokenizer,
    land,
    load_tokenizer,
    read_base_files,
    read_growth,
    read_landed,
    read_manifest,
    withdraw_growth,
)
from perennial.corpora.compatibility import check_same_settings
from perennial.corpora.growth.stored import grown_folder
from perennial.corpora.release_tokenizer import release_files, settle_class
from perennial.corpora.tokenizer import MANIFEST_KEY
from perennial.evaluation.heldout import read_documents
from perennial.store import Store, open_store
from tests.support.base_folders import write_base
from tests.support.passages import PASSAGES
from tests.support.plain_ingest import ingest_plainly
from tests.support.refusal import refused

SETTINGS = IngestSettings(sequence_length=16, seed=0, holdout_share=0.3)
FRENCH = [f"{PASSAGES['fr']} {number} œuvre" for number in range(30)]


def landed(folder: Path, name: str) -> Store:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in FRENCH))
    inbox = open_store(folder / "inbox")
    land(inbox, name, [file])
    return inbox


def grown(store: Store, folder: Path, entries: int = 60, name: str = "french") -> RunTokenizer:
    inbox = landed(folder, name)
    its = read_landed(inbox, name)
    return grow_tokenizer(store, inbox, its, entries, load_tokenizer(store), SETTINGS)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    run = open_store(tmp_path / "run")
    import_tokenizer(run, write_base(tmp_path / "base", "gpt_neox"))
    return run


def test_it_is_made_once_and_made_again_where_something_else_is_asked(
    store: Store, tmp_path: Path
) -> None:
    first = load_tokenizer(store)
    once = grown(store, tmp_path)
    written = store.read(f"{grown_folder('french')}/manifest.json")
    assert grown(store, tmp_path).fingerprint == once.fingerprint
    assert store.read(f"{grown_folder('french')}/manifest.json") == written
    growth = read_growth(store, "french")
    assert (growth.first, growth.entries) == (first.vocabulary, 60)
    assert once.vocabulary == first.vocabulary + 60
    assert growth.tokens_after < growth.tokens_before
    assert first.fingerprint in once.manifest.ancestors
    assert load_tokenizer(store).fingerprint == first.fingerprint
    assert grown(store, tmp_path, entries=20).vocabulary == first.vocabulary + 20
    withdraw_growth(store, "french")
    assert find_tokenizer(store, once.fingerprint) is None


def test_corpora_of_every_tokenizer_of_the_run_are_valid_and_foreign_ones_are_not(
    store: Store, tmp_path: Path
) -> None:
    old = ingest_plainly(store, landed(tmp_path, "old"), "old", SETTINGS)
    tokenizer = grown(store, tmp_path)
    check_same_run(store, old, tokenizer, SETTINGS)
    new = old.model_copy(update={"tokenizer": tokenizer.fingerprint})
    check_same_run(store, new, load_tokenizer(store), SETTINGS)
    with refused("ingested-differently"):
        check_same_settings(store, "old", tokenizer, SETTINGS)
    with refused("ingested-differently"):
        foreign = old.model_copy(update={"tokenizer": "0" * 64})
        check_same_run(store, foreign, tokenizer, SETTINGS)


def test_a_model_without_the_entries_reads_the_same_text_and_its_loss_counts_the_same_tokens(
    store: Store, tmp_path: Path
) -> None:
    """Held-out text of the new corpus: by its own ids, and by those that an older model knows."""
    tokenizer = grown(store, tmp_path)
    # A store whose tokenizer is the grown one tokenises the corpus as an ingest of the run does.
    other = open_store(tmp_path / "other")
    other.write("tokenizer/tokenizer.json", tokenizer.json.encode())
    other.write(MANIFEST_KEY, tokenizer.manifest.model_dump_json().encode())
    manifest = ingest_plainly(other, landed(tmp_path, "french"), "french", SETTINGS)
    for entry in other.list("corpora/french"):
        store.write(entry.key, other.read(entry.key))
    assert read_manifest(store, "french") == manifest
    folder = grown_folder("french")
    own = read_documents(store, "french", 100, folder)
    by_first = read_documents(store, "french", 100)
    assert own and len(own) == len(by_first)
    first = load_tokenizer(store)
    for mine, theirs in zip(own, by_first, strict=True):
        assert mine.counted is None and theirs.counted == len(mine.tokens)
        assert len(theirs.tokens) > len(mine.tokens)
        assert theirs.tokens.max() < first.vocabulary <= mine.tokens.max()
        assert theirs.tokens[-1] == first.end_of_document
        texts = [
            its.build().decode(np.asarray(document.tokens[:-1]).tolist())
            for its, document in ((tokenizer, mine), (first, theirs))
        ]
        assert texts[0] == texts[1]
        assert mine.bytes == theirs.bytes


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama3", "smollm2"])
def test_a_release_has_the_entries_and_the_bases_own_files_stay(
    tmp_path: Path, family: str
) -> None:
    base = write_base(tmp_path / "base", family)
    store = open_store(tmp_path / "run")
    first = import_tokenizer(store, base)
    kept = read_base_files(store, first)
    tokenizer = grown(store, tmp_path)
    folder = tmp_path / "release"
    folder.mkdir()
    for name, data in release_files(tokenizer, kept).items():
        (folder / name).write_bytes(data)
    assert not {"vocab.json", "merges.txt"} & {file.name for file in folder.iterdir()}
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    settle_class(folder)
    released = AutoTokenizer.from_pretrained(folder)
    before = AutoTokenizer.from_pretrained(base)
    for text in (*FRENCH[:2], PASSAGES["en"], "plain 123"):
        ids = released(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.build().encode(text, add_special_tokens=False).ids
        assert len(ids) <= len(before(text, add_special_tokens=False)["input_ids"])
    assert len(released) == tokenizer.vocabulary
    assert released.special_tokens_map == before.special_tokens_map
    assert released.all_special_ids == before.all_special_ids
    assert released.chat_template == before.chat_template
    assert read_base_files(store, first) == kept
