"""What a person decides about a corpus, through the command line; no compute is needed."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.controller.webhook import SHORTEST_SECONDS, Wakeup
from perennial.runs.ledger import Ledger
from perennial.store import open_store
from tests.support.tiny_run import tiny_run, write_run, write_texts


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run with one landed corpus that no controller has seen."""
    path = write_run(tmp_path, tiny_run(tmp_path))
    _do("land", path, "help", write_texts(tmp_path)["help"])
    return path


def _do(*words: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if code == 0 else done.stderr


def test_a_corpus_is_held_let_go_on_and_refused(run_file: Path) -> None:
    assert _do("hold", run_file, "help", "--reason", "its licence")["state"] == "held"
    told = _do("status", run_file)
    assert (told["corpora"], told["reasons"]) == ({"help": "held"}, {"help": "its licence"})
    assert told["next"] == []
    assert _do("retry", run_file, "help")["state"] == "landed"
    assert _do("status", run_file)["next"] == ["ingest help"]
    assert _do("refuse", run_file, "help")["state"] == "refused"
    assert _do("status", run_file)["next"] == []


def test_a_dry_run_of_a_decision_writes_nothing(run_file: Path) -> None:
    assert _do("hold", run_file, "help", "--dry-run")["todo"] == ["hold help"]
    assert Ledger(open_store(run_file.parent / "store")).read().corpora == {}


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("retire", "it is landed, so there is nothing to retire; possible now: hold, refuse"),
        ("accept", "it is landed, so there is nothing to accept"),
        ("retry", "it is landed, so there is nothing to retry"),
    ],
)
def test_a_decision_that_the_state_does_not_allow_says_what_is_possible(
    run_file: Path, verb: str, told: str
) -> None:
    assert told in _do(verb, run_file, "help", code=2)
    assert "there is no such corpus" in _do(verb, run_file, "nobody", code=2)


def test_a_posted_event_ends_the_pause_and_nothing_of_it_is_believed() -> None:
    with Wakeup(0, lambda _: None) as wakeup:
        assert not wakeup.wait(0.01)
        woken: list[bool] = []
        waiting = threading.Thread(target=lambda: woken.append(wakeup.wait(60)))
        waiting.start()
        body = b'{"Records": [{"s3": {"object": {"key": "../../etc"}}}]}'
        address = f"http://127.0.0.1:{wakeup.port}/"
        with urllib.request.urlopen(address, body) as answer:
            assert answer.status == 204
        waiting.join()
        assert woken == [True]


def test_many_posted_events_end_few_pauses_and_the_last_is_not_lost() -> None:
    began, events = time.monotonic(), 100
    posted: list[int] = []
    ended: list[float] = []
    last_seen = threading.Event()
    with Wakeup(0, lambda _: None) as wakeup:

        def look() -> None:
            while not last_seen.is_set():
                if wakeup.wait(60):
                    ended.append(time.monotonic())
                    if len(posted) == events:
                        last_seen.set()

        looking = threading.Thread(target=look)
        looking.start()
        for number in range(events):
            with urllib.request.urlopen(f"http://127.0.0.1:{wakeup.port}/", b"{}"):
                posted.append(number)
        looking.join()
    assert len(ended) <= 1 + (ended[-1] - began) / SHORTEST_SECONDS
