"""Forks of a run of which something is erased: before the fork, meanwhile, and in the fork."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import perennial
from perennial.api.run import Run
from perennial.audit.verify import verify
from perennial.controller.context import Workspace
from perennial.controller.erasing import erase as erasing
from perennial.controller.storage import fork as forking
from perennial.controller.storage.loans import own_folder
from perennial.corpora import read_manifest
from perennial.corpora.document_spans import read_spans
from perennial.errors import Busy, InputError
from perennial.evaluation.kept_samples import keep_samples
from perennial.evaluation.samples import Sample
from perennial.runs.ledger import Ledger
from perennial.store import Store, open_run_store, open_store
from perennial.training.checkpoint.retention import sweep
from tests.integration.audit.conftest import with_samples
from tests.support.tiny_run import tiny_run, write_run


def _findings(store: Store) -> list[str]:
    return [str(finding) for finding in verify(open_run_store(store.url)).findings]


def _new(folder: Path, store: Store) -> Run:
    folder.mkdir(exist_ok=True)
    document = tiny_run(folder, f"{store.url}-fork") | {"name": "other"}
    return perennial.open(write_run(folder, document))


def _erase(store: Store, corpus: str, documents: Path | None = None) -> None:
    work = Workspace(perennial.open(store.url).spec, store.url)
    work.check_run()
    try:
        erasing.erase(work, corpus, documents)
    finally:
        work.close()


def _one_document(store: Store, folder: Path) -> Path:
    manifest = read_manifest(store, "help")
    path = folder / "documents.txt"
    path.write_text(next(iter(read_spans(store, manifest, range(manifest.rows)))).digest)
    return path


@pytest.mark.parametrize("whole", [True, False], ids=["corpus", "document"])
def test_a_fork_at_an_earlier_checkpoint_knows_what_was_erased_since(
    local: Store, tmp_path: Path, whole: bool
) -> None:
    _erase(local, "help", None if whole else _one_document(local, tmp_path))
    new = _new(tmp_path / "new", local)
    perennial.open(local.url).fork("01-code@17", new)
    fork = open_run_store(new.spec.store)
    help_now = Ledger(fork).read().corpora["help"]
    assert (help_now.state, help_now.erasures) == ("erased" if whole else "passed", 1)
    assert _findings(fork) == []
    again = Ledger(fork).read()
    perennial.open(local.url).fork("01-code@17", new)
    assert Ledger(fork).read() == again
    _erase(fork, "help")
    assert _findings(fork) == []


def test_a_stage_whose_corpus_is_erased_does_not_go_on_in_a_fork(
    local: Store, tmp_path: Path
) -> None:
    _erase(local, "code")
    with pytest.raises(InputError) as refused:
        perennial.open(local.url).fork("01-code@17", _new(tmp_path / "new", local))
    assert refused.value.code == "fork-erased"


def test_an_erasure_that_was_killed_is_completed_before_a_fork(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(Workspace, "record", killed)
        _erase(local, "help", _one_document(local, tmp_path))
    new = _new(tmp_path / "new", local)
    with pytest.raises(InputError) as refused:
        perennial.open(local.url).fork("01-code", new)
    assert refused.value.code == "erasure-unfinished"


def test_of_an_erasure_and_a_fork_at_once_one_sees_the_other(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, real = _new(tmp_path / "new", local), forking._plan

    def meanwhile(*asked: Any) -> Any:
        planned = real(*asked)
        if not Ledger(local).read().corpora["help"].erasures:
            _erase(local, "help")
        return planned

    with monkeypatch.context() as racing:
        racing.setattr(forking, "_plan", meanwhile)
        perennial.open(local.url).fork("01-code", new)
    assert Ledger(open_store(new.spec.store)).read().corpora["help"].state == "erased"
    assert _findings(open_store(new.spec.store)) == []


def test_no_fork_begins_while_something_is_erased(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = _new(tmp_path / "new", local)

    def meanwhile(*asked: Any) -> None:
        with pytest.raises(Busy, match="perennial erase"):
            perennial.open(local.url).fork("01-code", new)
        own_folder(*asked)

    monkeypatch.setattr(erasing, "own_folder", meanwhile)
    _erase(local, "help")
    assert _findings(local) == []


def test_a_fork_that_is_repeated_borrows_nothing_again_that_it_erased(
    local: Store, tmp_path: Path
) -> None:
    new = _new(tmp_path / "new", local)
    perennial.open(local.url).fork("01-code", new)
    fork = open_run_store(new.spec.store)
    _erase(fork, "help", _one_document(fork, tmp_path))
    shutil.move(local.url, f"{local.url}-by-hand")
    perennial.open(f"{local.url}-by-hand").fork("01-code", new)
    assert read_manifest(open_run_store(fork.url), "help").erasures == 1
    assert _findings(fork) == []


def test_samples_come_with_the_entries_that_name_them(local: Store, tmp_path: Path) -> None:
    held = keep_samples(local, [Sample("help", "a beginning", "of a held-out document")])
    with_samples(local, "help", held)
    assert _findings(local) == []
    new = _new(tmp_path / "new", local)
    perennial.open(local.url).fork("01-code", new)
    assert _findings(open_store(new.spec.store)) == []


def test_retention_leaves_the_checkpoint_that_a_fork_goes_on_from(
    local: Store, tmp_path: Path
) -> None:
    new = _new(tmp_path / "new", local)
    perennial.open(local.url).fork("01-code@17", new)
    sweep(local, "checkpoints/01-code", (), 24, 1)
    assert not local.exists("checkpoints/01-code/00000022/manifest.json")
    assert _findings(open_store(new.spec.store)) == []
