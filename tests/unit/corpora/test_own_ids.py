"""Corpora that are no text: their ids have entries of their own, which no text becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.controller.declared_ids import declared_ids
from perennial.controller.tokenizer_growth import asked_of, check_extension, extension_for
from perennial.corpora import (
    IngestSettings,
    RunTokenizer,
    grow_tokenizer,
    grown_folder,
    import_tokenizer,
    land,
    load_tokenizer,
    read_base_files,
    read_growth,
    read_landed,
)
from perennial.corpora.growth.extend import (
    OwnIds,
    extend_from_sample,
    extend_with_own,
    pieces_of_entries,
)
from perennial.corpora.manifest import TokenIds
from perennial.corpora.release_tokenizer import release_files, settle_class
from perennial.corpora.tokenizer import MANIFEST_KEY, build_tokenizer, commit_tokenizer
from perennial.evaluation.heldout import read_documents
from perennial.runs.actions import not_ingested
from perennial.runs.stage_planner import order_of
from perennial.store import Store, open_store
from tests.support.base_folders import write_base
from tests.support.event_factory import event_of
from tests.support.id_files import flat, lines
from tests.support.plain_ingest import ingest_plainly
from tests.support.refusal import refused
from tests.support.small_tokenizers import byte_level_json
from tests.support.tiny_run import tiny_run

TEXT = json.dumps(byte_level_json(300))
OWN = OwnIds(ids=17)
IMAGES = [[(number * place) % 17 for place in range(1, 17)] for number in range(1, 60)]
PASSED = ("started", "trained", "evaluating", "evaluated", "passed")
OF_DIGITS = {"tokens": {"brought_by": "digits"}}


def run_of(folder: Path, read: dict[str, Any], **own: Any) -> Workspace:
    document = tiny_run(folder)
    document["corpora"] |= {"read": read}
    document["stages"] |= {"corpora": {"digits": {"extend_tokenizer": own or {"ids": 17}}}}
    work = Workspace(RunSpec.model_validate(document), "run.yaml")
    commit_tokenizer(work.store, build_tokenizer(TEXT, "<|endoftext|>", "trained", 300))
    work.open_ledger()
    return work


def test_each_id_is_an_entry_behind_all_others_that_no_text_becomes() -> None:
    made = extend_with_own(TEXT, "digits", OWN)
    assert (made.first, len(made.entries)) == (300, 17)
    tokenizer = build_tokenizer(made.json, "<|endoftext|>", "trained", 300)
    spelled = tokenizer.build().decode([303, 316], skip_special_tokens=False)
    assert (tokenizer.vocabulary, spelled) == (317, "<|digits:3|><|digits:16|>")
    plain = build_tokenizer(TEXT, "<|endoftext|>", "trained", 300).build_encoder()
    for text in (spelled, "plain <|digits:3|> text"):
        ids = tokenizer.build_encoder().encode(text, add_special_tokens=False).ids
        assert ids == plain.encode(text, add_special_tokens=False).ids
    pieces = pieces_of_entries(made.json, 300)
    assert len(pieces) == 17
    assert max(map(max, pieces)) < 300
    assert [plain.id_to_token(piece) for piece in pieces[3]][-3:] == ["3", "|", ">"]
    # A corpus of text that brings entries afterwards leaves these as they are.
    later = extend_from_sample(made.json, ["bonjour le monde " * 40], 5)
    assert later.first == 317
    assert (
        build_tokenizer(later.json, "<|endoftext|>", "trained", 300)
        .build()
        .decode([303], skip_special_tokens=False)
        == "<|digits:3|>"
    )
    with refused("token-is-taken"):
        extend_with_own(later.json, "digits", OWN)


def grown(store: Store, inbox: Store) -> RunTokenizer:
    its, settings = read_landed(inbox, "digits"), IngestSettings(sequence_length=16, seed=0)
    return grow_tokenizer(store, inbox, its, OWN, load_tokenizer(store), settings)


@pytest.mark.parametrize("form", ["lists", "a stream"])
def test_the_rows_have_the_entries_and_an_older_model_reads_their_spelling(
    tmp_path: Path, form: str
) -> None:
    store, inbox = open_store(tmp_path / "run"), open_store(tmp_path / "inbox")
    first = commit_tokenizer(store, build_tokenizer(TEXT, "<|endoftext|>", "trained", 300))
    # Level 0 is the run's end of a document, which must not cut an image; 17 does.
    assert first.end_of_document == 0
    bad = [[1, 18, 2], [-1]] if form == "lists" else []
    file = tmp_path / ("i.jsonl" if form == "lists" else "i.bin")
    file.write_bytes(lines([*IMAGES, *bad]) if form == "lists" else flat(IMAGES, 17))
    land(inbox, "digits", [file])
    tokenizer = grown(store, inbox)
    assert grown(store, inbox).fingerprint == tokenizer.fingerprint
    growth = read_growth(store, "digits")
    assert (growth.asked, growth.first, growth.entries) == (OWN, 300, 17)
    assert growth.describe() == "17 entries from id 300 on, for ids of its own"
    tokens = TokenIds(dtype="uint16", vocabulary=17, end_of_document=17, first=300)
    settings = IngestSettings(
        sequence_length=17, seed=0, tokens=tokens, holdout_share=0.2, max_bad_share=1.0
    )
    other = open_store(tmp_path / "other")
    other.write("tokenizer/tokenizer.json", tokenizer.json.encode())
    other.write(MANIFEST_KEY, tokenizer.manifest.model_dump_json().encode())
    manifest = ingest_plainly(other, inbox, "digits", settings)
    assert manifest.counts.documents == len(IMAGES) + len(bad)
    assert manifest.counts.quarantined == ({"token-out-of-vocabulary": 2} if bad else {})
    (shard,) = manifest.shards
    column = pq.read_table(Path(other.url) / f"corpora/digits/{shard.file}")["tokens"]
    images = {
        tuple(int(i) - 300 for i in np.frombuffer(row, "<u2")[:-1]) for row in column.to_pylist()
    }
    assert images <= set(map(tuple, IMAGES))
    for entry in other.list("corpora/digits"):
        store.write(entry.key, other.read(entry.key))
    own = read_documents(store, "digits", 100, grown_folder("digits"))
    by_first = read_documents(store, "digits", 100)
    assert own and len(own) == len(by_first)
    for mine, theirs in zip(own, by_first, strict=True):
        assert (mine.counted, theirs.counted) == (None, len(mine.tokens))
        assert theirs.tokens.max() < 300 <= mine.tokens[:-1].min()
        assert theirs.tokens[-1] == mine.tokens[-1] == 0


def test_the_files_ids_begin_with_the_entries_that_were_brought(tmp_path: Path) -> None:
    work = run_of(
        tmp_path,
        {"digits*": OF_DIGITS, "few": {"tokens": {"brought_by": "digits", "vocabulary": 5}}},
    )
    expected = TokenIds(dtype="uint16", vocabulary=17, end_of_document=17, first=300)
    assert declared_ids(work, "digits", is_decided=True) == expected
    check_extension(work, "digits", is_text=False, is_decided=True)
    with refused("corpus-cannot-extend"):
        check_extension(work, "digits", is_text=False, is_decided=False)
    with refused("ids-without-entries", "corpora.read.digits-2.tokens.brought_by"):
        declared_ids(work, "digits-2", is_decided=True)
    brought = extension_for(work, "digits")
    assert brought is not None and asked_of(brought) == OWN
    inbox = open_store(tmp_path / "inbox")
    (tmp_path / "i.jsonl").write_bytes(lines(IMAGES))
    land(inbox, "digits", [tmp_path / "i.jsonl"])
    tokenizer = grown(work.store, inbox)
    for kind in ("landed", "ingesting", "extended", "ready", *PASSED):
        event = event_of(kind, work.state, "digits")
        if kind == "extended":
            its = {"fingerprint": tokenizer.fingerprint, "vocabulary": tokenizer.vocabulary}
            event = event.model_copy(update=its)
        if kind == "started":
            # While its entries are not in force, others of the vocabulary wait.
            work.amend(event_of("landed", work.state, "digits-2"))
            assert not not_ingested(work.state, order_of(work.spec))
        work.amend(event)
    assert [c.name for c in not_ingested(work.state, order_of(work.spec))] == ["digits-2"]
    assert declared_ids(work, "digits-2", is_decided=True) == expected
    fewer = declared_ids(work, "few", is_decided=True)
    assert fewer == expected.model_copy(update={"vocabulary": 5})


def test_entries_and_ids_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    work = run_of(tmp_path / "a", {})
    with refused("corpus-cannot-extend"):
        check_extension(work, "digits", is_text=True, is_decided=True)
    work = run_of(tmp_path / "b", {"digits": OF_DIGITS}, entries=10)
    with refused("ids-without-entries"):
        declared_ids(work, "digits", is_decided=True)
    with pytest.raises(ValueError, match="exactly one of entries, tokens and ids"):
        run_of(tmp_path / "c", {}, entries=10, ids=3)
    with pytest.raises(ValueError, match="exactly one of tokenizer and brought_by"):
        run_of(tmp_path / "d", {"digits": {"tokens": {}}})


def test_a_manifest_of_ids_of_the_runs_tokenizer_is_what_it_was() -> None:
    tokens = TokenIds(dtype="uint16", vocabulary=300, end_of_document=0)
    assert "first" not in tokens.model_dump()


@pytest.mark.parametrize("family", ["gpt2", "llama3"])
def test_a_release_of_an_imported_tokenizer_has_the_entries(tmp_path: Path, family: str) -> None:
    base = write_base(tmp_path / "base", family)
    store, inbox = open_store(tmp_path / "run"), open_store(tmp_path / "inbox")
    kept = read_base_files(store, import_tokenizer(store, base))
    (tmp_path / "i.jsonl").write_bytes(lines(IMAGES))
    land(inbox, "digits", [tmp_path / "i.jsonl"])
    tokenizer = grown(store, inbox)
    folder = tmp_path / "release"
    folder.mkdir()
    for name, data in release_files(tokenizer, kept).items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    settle_class(folder)
    released, before = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(base)
    spelled = [f"<|digits:{number}|>" for number in range(17)]
    first = tokenizer.vocabulary - 17
    assert released.convert_tokens_to_ids(spelled) == list(range(first, first + 17))
    text = "plain 123"
    assert released(text)["input_ids"] == before(text)["input_ids"]
