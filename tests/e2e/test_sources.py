"""A source from its schedule to a tokenised corpus, by the verbs that a cron and a person use."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.cli.console import ProgressScreen
from perennial.config import load_run
from perennial.controller.context import Workspace
from perennial.controller.source_poller import Puller
from tests.support.cli import perennial_json
from tests.support.tiny_run import tiny_run, write_run, write_texts

PATIENCE_SECONDS = 60


def here(*words: object, code: int = 0) -> str:
    """`perennial WORDS` in this process, which has its libraries loaded."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def run_with_source(folder: Path) -> Path:
    crawl = folder / "crawl"
    crawl.mkdir()
    write_texts(folder)["help"].rename(crawl / "help.jsonl")
    document = tiny_run(folder)
    document["sources"] = {"crawl": {"prefix": str(crawl), "schedule": "1d"}}
    return write_run(folder, document)


@pytest.mark.long
def test_a_cron_pulls_what_is_due_and_tokenises_it_once(tmp_path: Path) -> None:
    run_file = run_with_source(tmp_path)
    first = perennial_json("ingest", run_file, "--due")
    (name,) = first["landed"]
    assert name.startswith("crawl-20")
    assert first["corpora"] == {name: "ready"}
    again = json.loads(here("ingest", run_file, "--due", "--json"))
    assert again["landed"] == []
    assert again["corpora"] == first["corpora"]
    (source,) = json.loads(here("status", run_file, "--json"))["sources"]
    assert source["landed"] == [name]
    assert datetime.fromisoformat(source["next_due"]) > datetime.now(UTC)
    assert name in here("status", run_file)


def test_a_dry_run_says_what_is_due_and_pulls_nothing(tmp_path: Path) -> None:
    run_file = run_with_source(tmp_path)
    plan = json.loads(here("ingest", run_file, "--due", "--dry-run"))
    assert plan["todo"][0].startswith("pull crawl at ")
    assert not (tmp_path / "store" / "inbox").exists()


def test_sources_that_are_not_there_are_not_pulled(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    assert "sources: there is none to pull" in here("ingest", run_file, "--due", code=2)


def test_a_watch_pulls_beside_what_else_it_does(tmp_path: Path) -> None:
    run_file = run_with_source(tmp_path)
    work = Workspace(load_run(run_file), str(run_file), [ProgressScreen()])
    puller = Puller(work, 0.01, lambda: datetime(2026, 11, 22, tzinfo=UTC))
    puller.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not work.inbox.exists("crawl-2026-11-22/_SUCCESS"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    puller.stop()
