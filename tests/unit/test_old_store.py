"""A store that version 0.1 wrote is read as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.cli.console import ProgressScreen
from perennial.config import load_run
from perennial.controller.context import Workspace
from perennial.report.build import page
from perennial.report.html import render
from perennial.runs.event_codec import decode, encode
from perennial.runs.ledger import Ledger
from tests.support.old_store import OldStore, unpack_old_store


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> OldStore:
    return unpack_old_store(tmp_path_factory.mktemp("old"))


def _run(*words: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def test_every_event_is_the_same_event_when_it_is_written_again(old: OldStore) -> None:
    files = sorted((old.folder / "ledger").iterdir())
    assert len(files) == 17
    for file in files:
        read = decode(file.read_bytes())
        assert read.before is None, "it is of a version without digests"
        assert decode(encode(read.event)).event == read.event, file.name


def test_its_events_fold_to_a_valid_state(old: OldStore) -> None:
    state = Ledger(old.store).read()
    state.validate()
    assert {name: corpus.state for name, corpus in state.corpora.items()} == {
        "help": "passed",
        "code": "training",
    }


def test_status_shows_a_stage_in_training_and_the_release(old: OldStore) -> None:
    status = _run("status", old.run_file, old.override)
    assert status["corpora"] == {"help": "released", "code": "training (constant, step 84)"}
    assert status["trunk"]["stage"] == "01-code"
    assert status["trunk"]["step"] == 84
    assert status["releases"] == ["releases/00-help-12-anneal4"]
    (stage,) = status["matrix"]["stages"]
    assert stage["losses"]["help"]["nats_per_token"] == 5.057240783265143


def test_verify_finds_no_fault(old: OldStore) -> None:
    verification = _run("verify", old.run_file, old.override)
    assert (verification["holds"], verification["findings"]) == (True, [])
    assert verification["files"] > 40


def test_status_and_verify_write_nothing(tmp_path: Path) -> None:
    old = unpack_old_store(tmp_path)
    before = [(entry.key, entry.etag) for entry in old.store.list("")]
    _run("status", old.run_file, old.override)
    _run("verify", old.run_file, old.override)
    assert [(entry.key, entry.etag) for entry in old.store.list("")] == before


def test_the_report_shows_the_stages_and_the_release(old: OldStore) -> None:
    work = Workspace(load_run(old.run_file, [old.override]), "", [ProgressScreen()])
    work.ledger.read()
    html = render(page(work, "2026-01-01T00:00:00+00:00"))
    for name in ("00-help", "01-code", "00-help-12-anneal4"):
        assert name in html
