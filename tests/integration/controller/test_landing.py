"""What the ledger holds of a corpus that landed, and what a change in the inbox comes to (I10)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from perennial import corpora
from perennial.cli.console import ProgressScreen
from perennial.config import RunSpec
from perennial.controller import ingest_stage
from perennial.controller.context import Workspace
from perennial.controller.decisions import decide
from perennial.controller.loop import ingest_landed, todo
from perennial.runs.event_codec import encode
from perennial.runs.events import Landed
from perennial.store import open_store
from tests.support.tiny_run import tiny_run, write_run

LINE = b'{"text": "' + b"a line of text " * 20 + b'"}\n'


@pytest.fixture
def work(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A run of which every ingest ends before it would need Ray."""
    document = tiny_run(tmp_path, store_url)
    opened = Workspace(
        RunSpec.model_validate(document), str(write_run(tmp_path, document)), [ProgressScreen()]
    )
    monkeypatch.setattr(Workspace, "use_ray", _no_ray)
    return opened


def _no_ray(_: Workspace) -> None:
    raise ConnectionError("the inbox holds what landed")


def _landed(work: Workspace, *, listed: bool) -> None:
    """Let two files land, and their landing be recorded."""
    files = {name: LINE * 3 for name in ("a.jsonl", "b.jsonl")}
    described = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    ]
    for name, data in files.items():
        work.inbox.write(f"en/{name}", data)
    work.inbox.write("en/_SUCCESS", json.dumps({"files": described}).encode() if listed else b"")
    (seen,) = corpora.list_landed(work.inbox)
    work.open_ledger()
    work.record(ingest_stage.landing(work, seen))


def _ingested(work: Workspace) -> str:
    """The corpus's reason after an ingest was tried."""
    with pytest.raises(ConnectionError):
        ingest_landed(work)
        raise ConnectionError("the corpus was refused")
    return work.ledger.read().corpora["en"].reason


def test_a_listed_corpus_that_changed_after_it_landed_is_refused(work: Workspace) -> None:
    _landed(work, listed=True)
    work.inbox.remove("en/b.jsonl")
    reason = _ingested(work)
    assert work.state.corpora["en"].state == "refused"
    assert reason.startswith(f"{work.inbox.url}/en: b.jsonl: vanished: its marker's list has 9")
    decide(work, "retry", "en")
    work.inbox.write("en/b.jsonl", LINE)
    assert "b.jsonl: changed: its marker's list has 939 bytes" in _ingested(work)
    decide(work, "retry", "en")
    work.inbox.write("en/b.jsonl", LINE * 3)
    assert "the inbox holds what landed" in _ingested(work)


def test_files_that_came_later_are_named_and_ignored(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    _landed(work, listed=False)
    work.inbox.write("en/c.jsonl", LINE)
    assert "the inbox holds what landed" in _ingested(work)
    assert "c.jsonl beside it: ignored" in capsys.readouterr().err


def test_a_corpus_without_a_promise_that_changed_is_refused_until_a_user_retries(
    work: Workspace,
) -> None:
    _landed(work, listed=False)
    work.inbox.write("en/b.jsonl", LINE[::-1] * 3)
    reason = _ingested(work)
    assert "b.jsonl: changed: it landed with 939 bytes, etag " in reason
    assert "take the inbox as it is by `perennial retry RUN_FILE en`" in reason
    decide(work, "retry", "en")
    assert work.state.corpora["en"].listing is None
    assert "the inbox holds what landed" in _ingested(work)


def test_a_landing_that_a_users_decision_records_has_its_list(work: Workspace) -> None:
    work.inbox.write("en/a.jsonl", LINE * 3)
    work.inbox.write("en/_SUCCESS", b"")
    decide(work, "hold", "en")
    listing = work.state.corpora["en"].listing
    assert listing is not None
    assert (listing.files, listing.promised) == (1, False)


def test_a_manifest_that_was_written_first_lets_nothing_begin(work: Workspace) -> None:
    work.inbox.write("en/manifest.json", json.dumps({"files": ["a.jsonl", "b.jsonl"]}).encode())
    work.inbox.write("en/a.jsonl", LINE * 3)
    work.ledger.read()
    assert todo(work) == []
    work.inbox.write("en/b.jsonl", LINE * 3)
    assert todo(work) == ["take up en"]


def test_the_event_of_ten_thousand_files_is_small(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    listed = [{"name": f"part-{n:05d}.jsonl", "sha256": f"{n:064x}"} for n in range(10_000)]
    inbox = store.sub("inbox")
    inbox.write("en/_SUCCESS", json.dumps({"files": listed}).encode())
    (seen,) = corpora.list_landed(inbox)
    record = corpora.record_list(store, inbox, seen)
    assert record is not None
    assert (record.files, record.promised) == (10_000, True)
    event = Landed(at="2026-01-01T00:00:00+00:00", corpus="en", size_bytes=1, listing=record)
    assert len(encode(event)) < 500
    assert len(store.read(record.key)) == record.size_bytes
    assert corpora.record_list(store, inbox, seen) == record
