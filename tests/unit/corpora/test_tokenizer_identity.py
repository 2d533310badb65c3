"""One tokenizer under several spellings of its file, and stores of versions before 0.2."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from perennial.audit.counts import check_manifest
from perennial.corpora import import_tokenizer, load_tokenizer
from perennial.corpora.compatibility import check_same_run
from perennial.corpora.counts import Counts
from perennial.corpora.encoders import choose_encoder
from perennial.corpora.manifest import CorpusManifest, IngestSettings
from perennial.corpora.reuse import borrow_tokenizer
from perennial.corpora.tokenizer import MANIFEST_KEY, TOKENIZER_KEY
from perennial.store import Store, open_store
from tests.support.small_tokenizers import byte_level_json

SETTINGS = IngestSettings(sequence_length=8, seed=0)


def spare_json() -> dict[str, Any]:
    """Return a tokenizer.json without the keys that its library did not write in 2021."""
    content = byte_level_json()
    for section, key in (("pre_tokenizer", "use_regex"), ("model", "byte_fallback")):
        del content[section][key]
    del content["model"]["ignore_merges"]
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    return content


def digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return a file that lacks keys, and the same one as its own library saves it."""
    spare, saved = tmp_path / "spare.json", tmp_path / "saved.json"
    spare.write_text(json.dumps(spare_json()))
    Tokenizer.from_file(str(spare)).save(str(saved))
    assert digest(json.loads(saved.read_text())) != digest(spare_json())
    return spare, saved


def old_store(folder: Path) -> Store:
    """Return a store whose tokenizer an earlier version imported: the file as it was."""
    store, content = open_store(folder), spare_json()
    store.write(TOKENIZER_KEY, json.dumps(content, ensure_ascii=False).encode())
    end = content["added_tokens"][0]
    manifest = {
        "fingerprint": digest(content),
        "end_of_document": end["id"],
        "end_of_document_text": end["content"],
        "vocabulary": len(content["model"]["vocab"]),
        "source": "imported",
        "asked_vocabulary": None,
    }
    store.write(MANIFEST_KEY, json.dumps(manifest).encode())
    return store


def corpus(tokenizer: str) -> CorpusManifest:
    return CorpusManifest(
        name="en",
        tokenizer=tokenizer,
        engine="tokenizers",
        vocabulary=300,
        end_of_document=0,
        settings=SETTINGS,
        inputs=(),
        shards=(),
        holdout=(),
        quarantine=(),
        counts=Counts(),
        tokens_per_byte=0.5,
    )


@pytest.mark.parametrize("first", [0, 1])
def test_a_file_saved_again_by_its_own_library_is_the_same_tokenizer(
    files: tuple[Path, Path], tmp_path: Path, first: int
) -> None:
    store = open_store(tmp_path / "store")
    imported = import_tokenizer(store, files[first])
    assert import_tokenizer(store, files[1 - first]) == imported == load_tokenizer(store)
    other = import_tokenizer(open_store(tmp_path / "other"), files[1 - first])
    assert other.fingerprint == imported.fingerprint


def test_a_file_that_lacks_keys_takes_the_fast_engine(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    for number, file in enumerate(files):
        imported = import_tokenizer(open_store(tmp_path / str(number)), file)
        assert choose_encoder(imported, ["one two three"]) == "tiktoken"
    assert choose_encoder(load_tokenizer(old_store(tmp_path / "old")), ["one"]) == "tiktoken"


def test_the_tokenizer_of_an_old_store_opens_unchanged(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    store = old_store(tmp_path / "old")
    before = {info.key: store.read(info.key) for info in store.list("")}
    present = load_tokenizer(store)
    assert present.fingerprint == digest(spare_json())
    for file in files:
        assert import_tokenizer(store, file) == present
    assert {info.key: store.read(info.key) for info in store.list("")} == before


def test_corpora_of_an_old_store_are_the_runs_under_either_fingerprint(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    lender = old_store(tmp_path / "old")
    borrower = open_store(tmp_path / "borrower")
    borrow_tokenizer(borrower, lender)
    old, new = load_tokenizer(borrower), import_tokenizer(open_store(tmp_path / "new"), files[0])
    assert old.fingerprint != new.fingerprint
    spec = {"corpora": {"sequence_length": 8}, "seed": 0}
    for tokenizer in (old, new):
        for fingerprint in (old.fingerprint, new.fingerprint):
            manifest = corpus(fingerprint)
            check_same_run(borrower, manifest, tokenizer, SETTINGS)
            findings = list(check_manifest("corpora/en/m", manifest, spec, tokenizer))
            assert not findings
