"""Entries that a corpus cannot bring, or cannot come back with: refused before any compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec
from perennial.controller import decisions
from perennial.controller.context import Workspace
from perennial.controller.rewind import check_entries
from perennial.controller.tokenizer_growth import check_extension, extension_for
from perennial.corpora import load_tokenizer
from perennial.corpora.manifest import manifest_key
from perennial.corpora.tokenizer import build_tokenizer, commit_tokenizer
from perennial.store import Store
from tests.support.event_factory import event_of
from tests.support.refusal import refused
from tests.support.small_manifest import small_manifest
from tests.support.small_tokenizers import byte_level_json
from tests.support.tiny_run import tiny_run

INGESTED = ("landed", "ingesting", "extended", "ready")
TRAINED = ("started", "trained", "evaluating", "evaluated", "passed")


def work_of(folder: Path, **stages: Any) -> Workspace:
    document = tiny_run(folder)
    own = {"extend_tokenizer": {"entries": 10}}
    document["stages"] |= {"corpora": {"french": own, "german": own}} | stages
    work = Workspace(RunSpec.model_validate(document), "run.yaml")
    text = json.dumps(byte_level_json(300))
    tokenizer = build_tokenizer(text, "<|endoftext|>", "trained", 300)
    commit_tokenizer(work.store, tokenizer)
    work.open_ledger()
    return work


def tell(work: Workspace, corpus: str, *kinds: str) -> None:
    for kind in kinds:
        event = event_of(kind, work.state, corpus)
        if kind == "extended":
            grew_from = load_tokenizer(work.store).fingerprint
            event = event.model_copy(update={"grew_from": grew_from})
        work.amend(event)


@pytest.mark.parametrize("aside", ["held", "refused"])
def test_a_corpus_comes_back_with_its_entries_unless_another_brought_some(
    tmp_path: Path, aside: str
) -> None:
    work = work_of(tmp_path)
    tell(work, "english", "landed", "ingesting", "ready", *TRAINED)
    tell(work, "french", *INGESTED, aside)
    decisions.check(work, "retry", "french", None)
    tell(work, "german", *INGESTED)
    with refused("tokenizer-grew-otherwise") as told:
        decisions.check(work, "retry", "french", None)
    assert "another name" in told.value.remedy
    tell(work, "german", "refused")
    decisions.check(work, "retry", "french", None)


def test_entries_are_refused_where_they_would_change_nothing(tmp_path: Path) -> None:
    work = work_of(tmp_path)
    check_extension(work, "french", is_text=True, is_decided=True)
    check_extension(work, "english", is_text=False, is_decided=False)
    with refused("corpus-cannot-extend"):
        check_extension(work, "french", is_text=False, is_decided=True)
    with refused("corpus-cannot-extend"):
        check_extension(work, "french", is_text=True, is_decided=False)


def test_a_corpus_without_a_stage_brings_nothing(tmp_path: Path) -> None:
    work = work_of(tmp_path, only=["german"])
    assert extension_for(work, "french") is None
    assert extension_for(work, "german") is not None


def test_entries_that_another_corpus_has_ids_of_do_not_leave_the_trunk(tmp_path: Path) -> None:
    work = work_of(tmp_path)
    tell(work, "english", "landed", "ingesting", "ready", *TRAINED)
    tell(work, "french", *INGESTED, *TRAINED)
    tell(work, "spanish", "landed", "ingesting", "ready", *TRAINED)
    english, french, spanish = work.state.stages
    for name, tokenizer in {"english": "t1", "french": "of french", "spanish": "t1"}.items():
        write_manifest(work.store, name, tokenizer)
    check_entries(work, english.name, [spanish, french])
    write_manifest(work.store, "spanish", work.state.extensions["french"].fingerprint)
    check_entries(work, french.name, [spanish])
    with refused("tokenizer-would-shrink") as told:
        check_entries(work, english.name, [spanish, french])
    assert told.value.remedy == "name 01-french or a later stage"


def write_manifest(store: Store, name: str, tokenizer: str) -> None:
    manifest = small_manifest(name, tokenizer=tokenizer)
    whole = manifest.model_copy(update={"digest": manifest.compute_digest()})
    store.write(manifest_key(name), whole.model_dump_json().encode())
