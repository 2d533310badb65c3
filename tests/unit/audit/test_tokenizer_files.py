"""The base's tokenizer files are checked as a manifest's other files are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from perennial.audit.verify import Verification, _corpora
from perennial.corpora import import_tokenizer
from perennial.runs.state import RunState
from perennial.store import open_store
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
