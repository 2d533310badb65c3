"""A source that is years old: a look costs the end of its log, and finds what the whole has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from perennial.config import SourceSpec, parse
from perennial.sources import DataSource
from perennial.sources.base import FetchedFile
from perennial.sources.snapshots import EVERY_EVENTS
from perennial.sources.state import SourceState
from perennial.store import Store, open_store
from perennial.store.local import LocalStore

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
LOOKS = 3 * EVERY_EVENTS + 7
KEY = f"sources/news/state/{3 * EVERY_EVENTS:012d}.json"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A run's store whose source was looked at every hour, and had one file at first."""
    new = tmp_path / "new.txt"
    new.write_text("news")
    files = [[FetchedFile(new, "a.txt", "https://x.org/a.txt?part=1", "1")]]

    def fetch(*_: object) -> Iterator[FetchedFile]:
        yield from files.pop() if files else ()

    monkeypatch.setattr("perennial.sources.source.fetch_index", fetch)
    kept = open_store(tmp_path / "store")
    source = _source(kept)
    for look in range(LOOKS):
        source.run_due(BEGUN + timedelta(hours=look), lambda _: None)
    return kept


def _source(store: Store, **fields: Any) -> DataSource:
    written = {"index": "https://x.org/list.json", "schedule": "1h", "minimum": "1 MB", **fields}
    spec = parse(written, SourceSpec, "run.yaml")
    return DataSource("news", spec, store, store.sub("inbox"), least_bytes=1)


def _read_counted(
    source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> tuple[SourceState, Counter[str]]:
    asked: Counter[str] = Counter()
    read = LocalStore.read

    def counted(self: LocalStore, key: str) -> bytes:
        asked[key.split("/")[0]] += 1
        return read(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "read", counted)
        return source.read(), asked


def test_a_look_reads_the_end_of_the_log(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    state, asked = _read_counted(_source(store), monkeypatch)
    assert asked.total() == 1 + 1 + 7, "the snapshot, its last event, and what came since"
    assert len(store.list("sources/news/state")) == 1
    store.remove("sources/news/state")
    whole, asked = _read_counted(_source(store), monkeypatch)
    assert asked.total() == LOOKS
    assert whole == state
    assert (state.pulls, len(state.seen), len(state.waiting)) == (LOOKS, 1, 1)


@pytest.mark.parametrize(
    "change", [{"format": 0}, {"last_event": "0" * 64}, {"secrets": ""}, {"events": 9}, {"at": 1}]
)
def test_a_snapshot_of_something_else_is_not_believed(
    store: Store, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    whole = _source(store).read()
    written = json.loads(store.read(KEY)) | change
    written["state"]["watermark"] = "elsewhere"
    store.write(KEY, json.dumps(written).encode())
    state, asked = _read_counted(_source(store), monkeypatch)
    assert state == whole
    assert asked.total() >= LOOKS


def test_other_secrets_read_the_log_again(store: Store) -> None:
    """Files are known by their addresses without the secret parts."""
    state = _source(store, secrets=["part"]).read()
    assert list(state.seen) != list(_source(store).read().seen)
