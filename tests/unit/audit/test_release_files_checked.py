"""The base's tokenizer files, and a release's configurations, are checked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from perennial.audit.verify import Verification, _corpora, _says_as_much
from perennial.corpora import import_tokenizer
from perennial.runs.state import RunState
from perennial.store import open_store
from perennial.training.model.spellings import spell_for_all
from tests.support.base_folders import write_base


def test_the_bases_files_are_read_with_those_of_the_corpora(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    kept = import_tokenizer(store, write_base(tmp_path / "base", "smollm2")).manifest.files
    story = SimpleNamespace(events=(), state=RunState())
    done = cast("Verification", SimpleNamespace(story=story, findings=[], lost={}, manifests={}))
    tasks = list(_corpora(store, done, {"corpora/en"}))
    assert {(task.key, task.sha256) for task in tasks} == {
        (f"tokenizer/base/{file.file}", file.sha256) for file in kept
    }
    assert len(kept) == 6


def test_a_releases_configuration_says_all_that_its_checkpoints_does(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    trained = {"model_type": "llama", "use_cache": False, "hidden_size": 64, "dtype": "float32"}
    spelled = spell_for_all(trained)
    store.write("c/config.json", json.dumps(trained).encode())
    for changed, holds in (({}, True), ({"hidden_size": 65}, False), ({"new": 1}, True)):
        store.write("r/config.json", json.dumps(spelled | changed).encode())
        assert _says_as_much(store, "r/config.json", "c/config.json") == holds
    store.write("r/config.json", b"{}")
    assert not _says_as_much(store, "r/config.json", "c/config.json")
    store.write("r/model.safetensors", b"a")
    assert not _says_as_much(store, "r/model.safetensors", "r/model.safetensors")
