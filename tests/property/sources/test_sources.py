"""Schedules over any times, and a source that is killed anywhere."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from perennial import corpora
from perennial.config import SourceSpec, parse
from perennial.config.cron import parse_duration, parse_timetable, show_duration
from perennial.sources import DataSource
from perennial.sources.events import AttemptFailed, FilesPulled
from perennial.sources.state import SourceState, next_due
from perennial.store import Store, open_store
from perennial.store.local import LocalStore

TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))
TABLES = st.one_of(
    st.integers(1, 5000).map(lambda minutes: f"{minutes}m"),
    st.sampled_from(["0 2 * * *", "*/7 * * * *", "30 4 1 * *", "0 0 29 2 *", "15 6 * * 1-5"]),
).map(parse_timetable)


@given(table=TABLES, now=TIMES)
def test_the_slot_and_the_following_one_enclose_now(table: Any, now: datetime) -> None:
    slot, following = table.last_due(now), table.next_due(now)
    assert slot <= now < following
    assert table.last_due(slot) == slot
    assert table.next_due(slot) == following


@given(st.integers(1, 999_999), st.sampled_from("smhd"))
def test_a_duration_is_shown_as_it_can_be_read(number: int, unit: str) -> None:
    duration = parse_duration(f"{number}{unit}")
    assert parse_duration(show_duration(duration)) == duration


@given(table=TABLES, start=TIMES, waits=st.lists(st.integers(0, 300_000), max_size=30))
def test_each_slot_that_was_seen_is_pulled_once(
    table: Any, start: datetime, waits: list[int]
) -> None:
    spec = SourceSpec(prefix="x", schedule=table)
    state, now, pulled = SourceState(), start, []
    for wait in waits:
        now += timedelta(seconds=wait)
        if now >= next_due(spec, state, now):
            state.apply(FilesPulled(at=now, folder="f", files=(), watermark=""))
            pulled.append(table.last_due(now))
    assert pulled == sorted(set(pulled))
    looked, now = [], start
    for wait in waits:
        now += timedelta(seconds=wait)
        looked.append(table.last_due(now))
    assert pulled == sorted(set(looked))


@given(table=TABLES, start=TIMES, failures=st.integers(1, 40))
def test_after_a_failure_the_wait_grows_to_an_hour_at_most(
    table: Any, start: datetime, failures: int
) -> None:
    spec = SourceSpec(prefix="x", schedule=table)
    state, now = SourceState(), start
    for _ in range(failures):
        state.apply(AttemptFailed(at=now, reason="no"))
        again = next_due(spec, state, now)
        assert timedelta(0) < again - now <= timedelta(hours=1)
        assert again <= table.next_due(now)
        now = again


class Killed(BaseException):
    """The process is gone: nothing that catches exceptions sees it."""


@dataclass(frozen=True)
class MortalStore(LocalStore):
    """Dies before or after one of its writes; `lives` counts down over all stores."""

    lives: tuple[list[int], ...] = field(default=(), compare=False)

    @contextmanager
    def _mortally(self) -> Iterator[None]:
        self.lives[0][0] -= 1
        if self.lives[0][0] == 0:
            raise Killed
        yield
        self.lives[0][0] -= 1
        if self.lives[0][0] == 0:
            raise Killed

    def sub(self, prefix: str) -> Any:
        return MortalStore(f"{self.url}/{prefix}", self.lives)

    def create(self, key: str, data: bytes) -> bool:
        with self._mortally():
            return LocalStore.create(self, key, data)

    def open(self, key: str, mode: Any = "rb") -> Any:
        if mode == "wb":
            with self._mortally():
                pass
        return LocalStore.open(self, key, mode)

    def remove(self, key_or_prefix: str) -> None:
        with self._mortally():
            LocalStore.remove(self, key_or_prefix)


def look(spec: SourceSpec, store: Store, now: datetime) -> None:
    told: list[str] = []
    DataSource("news", spec, store, store.sub("inbox"), least_bytes=1).run_due(now, told.append)
    assert not any("failed" in line for line in told), told


def landed_texts(store: Store) -> dict[str, list[str]]:
    inbox = store.sub("inbox")
    return {
        corpus.name: [inbox.read(f"{corpus.name}/{file.name}").decode() for file in corpus.files]
        for corpus in corpora.list_landed(inbox)
    }


@settings(max_examples=40, deadline=None)
@given(
    days=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    minimum=st.sampled_from(["0 B", "30 B", "60 B"]),
    deaths=st.lists(st.integers(1, 12), max_size=6),
)
def test_a_source_that_is_killed_anywhere_loses_and_doubles_nothing(
    days: list[int], minimum: str, deaths: list[int]
) -> None:
    """I5: every file that appeared is in exactly one corpus, or still waits for the minimum."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "crawl").mkdir()
        document = {
            "prefix": str(folder / "crawl"),
            "schedule": "1d",
            "minimum": minimum,
            "max_age": "3d",
        }
        spec = parse(document, SourceSpec, "test")
        written, left = [], list(deaths)
        now = datetime(2026, 11, 1, 2, tzinfo=UTC)
        for day, files in enumerate(days):
            for number in range(files):
                text = f"day {day} file {number}\n"
                (folder / "crawl" / f"{day}-{number}.txt").write_text(text)
                written.append(text)
            now += timedelta(days=1)
            while left:
                mortal = MortalStore(str(folder / "store"), ([left.pop()],))
                try:
                    look(spec, mortal, now)
                except Killed:
                    continue
                break
            look(spec, open_store(folder / "store"), now)
        look(spec, open_store(folder / "store"), now + timedelta(days=4))
        texts = landed_texts(open_store(folder / "store"))
        assert sorted(text for each in texts.values() for text in each) == sorted(written)
        assert all(name.startswith("news-2026-11-") for name in texts)
        pulled = open_store(folder / "store").list("sources/news/pulled")
        look(spec, open_store(folder / "store"), now + timedelta(days=5))
        assert open_store(folder / "store").list("sources/news/pulled") == []
        assert len(pulled) <= 3 * len(deaths)
