"""Sources without their places: the schema, the index, what is enough, what things are called."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from perennial.config import SourceSpec, parse
from perennial.errors import InputError, PullFailed, Terminated
from perennial.sources import DataSource
from perennial.sources.base import make_file_name
from perennial.sources.events import CorpusChosen, FilesPulled, PulledFile
from perennial.sources.listing import Entry, read_index
from perennial.sources.state import SourceState, is_enough, make_corpus_name
from perennial.store import open_store

NOW = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
PAGE = """<html><a href="../">up</a> <a href="?C=N">by name</a> <a href="a.jsonl.gz">a</a>
<a href="/data/sub/b%20c.txt#top">b</a> <a href="https://elsewhere.org/data/c.txt">c</a>"""


def spec(**fields: Any) -> SourceSpec:
    return parse({"prefix": "crawl", "schedule": "1d", **fields}, SourceSpec, "run.yaml")


def pulled(at: datetime, size_bytes: int) -> FilesPulled:
    file = PulledFile(name="a.txt", origin="a", version="1", size_bytes=size_bytes, sha256="")
    return FilesPulled(at=at, folder="pulled/0", files=(file,), watermark="")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"schedule": "hourly"}, "schedule.*neither a period nor five cron fields"),
        ({"schedule": "30s"}, "shorter than a minute"),
        ({"schedule": "61 2 * * *"}, "not a cron schedule.*minute"),
        ({"schedule": "0 2 30 2 *"}, "not a cron schedule"),
        ({"minimum": "10"}, "minimum.*not a size such as"),
        ({"minimum": 10}, "minimum"),
        ({"max_age": "soon"}, "max_age.*not a duration"),
        ({"index": "https://x.org/"}, "exactly one of prefix, index and command"),
        ({"prefix": None}, "exactly one of prefix, index and command"),
        ({"prefix": None, "command": []}, "exactly one of prefix, index and command"),
        ({"prefix": None, "index": "ftp://x.org/"}, "no http address"),
        ({"prefix": None, "index": "https://me:hunter2@x.org/"}, "user or password.*netrc"),
        ({"every": "1d"}, "no such key"),
    ],
)
def test_a_wrong_source_is_refused_with_what_would_be_right(
    fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told) as refused:
        spec(**fields)
    assert "hunter2" not in str(refused.value)


def test_a_source_is_shown_as_it_was_written() -> None:
    written = {"minimum": "10 MB", "max_age": "7d", "schedule": "0 2 * * 1"}
    shown = spec(**written).model_dump(mode="json")
    assert {field: shown[field] for field in written} == written
    assert parse(shown, SourceSpec, "again") == spec(**written)


def test_a_page_gives_the_links_below_it() -> None:
    assert read_index("https://x.org/data/", PAGE).entries == [
        Entry("https://x.org/data/?C=N"),
        Entry("https://x.org/data/a.jsonl.gz"),
        Entry("https://x.org/data/sub/b%20c.txt"),
    ]


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_json_list_gives_addresses_anywhere_and_versions(wrapped: bool) -> None:
    listed = '["a.jsonl", {"url": "https://cdn.org/b.jsonl", "version": 7}]'
    text = f'{{"files": {listed}}}' if wrapped else listed
    assert read_index("https://x.org/data/list.json", text).entries == [
        Entry("https://x.org/data/a.jsonl"),
        Entry("https://cdn.org/b.jsonl", "7"),
    ]


@pytest.mark.parametrize("field", ["url", "version"])
def test_an_entry_with_half_a_character_is_left_out_alone(field: str) -> None:
    entry = {"url": "b.jsonl", "version": "1"} | {field: "b\ud800"}
    listing = read_index("https://x.org/list.json", json.dumps(["a.jsonl", entry]))
    assert [each.url for each in listing.entries] == ["https://x.org/a.jsonl"]
    assert "half of a character" in listing.wrong[2]


@pytest.mark.parametrize("text", ['{"a": 1}', "[1", "[" * 100_000])
def test_other_json_is_no_index(text: str) -> None:
    with pytest.raises(PullFailed, match="no index"):
        read_index("https://x.org/list.json", text)


@pytest.mark.parametrize(
    ("minimum", "max_age", "least_bytes", "days", "lands"),
    [
        ("0 B", None, 1, 0, True),
        ("100 B", None, 1, 0, True),
        ("101 B", None, 1, 300, False),
        ("101 B", "3d", 1, 2, False),
        ("101 B", "3d", 1, 3, True),
        ("0 B", "3d", 101, 3, False),
    ],
)
def test_what_waits_lands_when_it_is_enough_or_too_old(
    minimum: str, max_age: str | None, least_bytes: int, days: int, lands: bool
) -> None:
    state = SourceState()
    state.apply(pulled(NOW - timedelta(days=days), 60))
    state.apply(pulled(NOW, 40))
    assert is_enough(spec(minimum=minimum, max_age=max_age), state, NOW, least_bytes) is lands


def test_nothing_is_never_enough() -> None:
    assert not is_enough(spec(max_age="1m"), SourceState(), NOW, 0)


def test_a_corpus_is_named_by_its_date_and_then_numbered() -> None:
    taken = {"news-2026-11-22", "news-2026-11-22.2", "news-2026-11-23"}
    assert make_corpus_name("news", NOW, taken) == "news-2026-11-22.3"
    assert make_corpus_name("news", NOW, set()) == "news-2026-11-22"


def test_a_second_choice_keeps_what_the_first_gathered() -> None:
    state = SourceState()
    state.apply(pulled(NOW, 60))
    state.apply(CorpusChosen(at=NOW, corpus="news-2026-11-22", pulls=1))
    state.apply(CorpusChosen(at=NOW, corpus="news-2026-11-22.2", pulls=1))
    assert [len(pull.files) for pull in state.landing] == [1]
    assert state.waiting == []


def test_names_from_outside_are_made_plain() -> None:
    assert make_file_name(3, 1, "a/b/../../x y\\%2f.jsonl.gz") == "000003-000001-x-y-2f.jsonl.gz"
    assert len(make_file_name(0, 0, "x" * 500 + ".txt")) < 140


def failing_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> DataSource:
    def fetch(*_: object) -> None:
        raise failure("why")

    monkeypatch.setattr("perennial.sources.source.fetch_prefix", fetch)
    store = open_store(folder / "store")
    return DataSource("news", spec(), store, store.sub("inbox"), least_bytes=1)


@pytest.mark.parametrize("failure", [PullFailed, OSError, RuntimeError, KeyError])
def test_a_failure_is_logged_and_never_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    lines: list[str] = []
    source = failing_source(tmp_path, monkeypatch, failure)
    assert source.run_due(NOW, lines.append) == []
    assert source.state.failures == 1
    assert "why" in source.state.error
    assert len(lines) == 1


@pytest.mark.parametrize("ending", [Terminated, KeyboardInterrupt, SystemExit])
def test_a_request_to_end_passes_through_a_pull(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException]
) -> None:
    source = failing_source(tmp_path, monkeypatch, ending)
    with pytest.raises(ending):
        source.run_due(NOW, print)
    assert source.read().failures == 0
