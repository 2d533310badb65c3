"""Sources with the real places that they pull from: folders, S3, HTTP servers, programs."""

from __future__ import annotations

import email.utils
import hashlib
import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from perennial import corpora
from perennial.config import SourceSpec, parse
from perennial.sources import DataSource, http_client, source
from perennial.sources.events import SourceEvent, encode_event
from perennial.store import Store, open_store
from tests.support.processes import wait_until_ended

START = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)


class Place:
    """A source with its store, its clock and what it said."""

    def __init__(self, store: Store, least_bytes: int = 1, **fields: Any) -> None:
        self.spec = parse({"schedule": "1d", **fields}, SourceSpec, "run.yaml")
        self.store = store
        self.inbox = store.sub("inbox")
        self.now = START
        self.told: list[str] = []
        self._least_bytes = least_bytes

    def source(self) -> DataSource:
        """As a new process finds it."""
        return DataSource("news", self.spec, self.store, self.inbox, self._least_bytes)

    def look(self, days: float = 0) -> list[str]:
        self.now += timedelta(days=days)
        return self.source().run_due(self.now, self.told.append)

    def texts(self) -> dict[str, list[str]]:
        """Contents of the landed corpora, in the order of their files."""
        return {
            corpus.name: [
                self.inbox.read(f"{corpus.name}/{file.name}").decode() for file in corpus.files
            ]
            for corpus in corpora.list_landed(self.inbox)
        }


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


def test_new_and_changed_objects_of_a_prefix_land_once_by_date(store: Store) -> None:
    """I8: from a folder and from S3 alike."""
    crawl = store.sub("crawl")
    place = Place(store, prefix=crawl.url, match="*.txt")
    crawl.write("2026/a.txt", b"one")
    crawl.write("b.txt", b"two")
    crawl.write("b.json", b"of no kind that is asked for")
    crawl.write("_SUCCESS", b"")
    crawl.write("2026/_temporary/0/c.txt", b"half of a file")
    crawl.write(".ipynb_checkpoints/a.txt", b"a copy")
    assert place.look() == ["news-2026-11-22"]
    assert place.look() == []  # not due yet
    assert place.look(days=1) == []  # nothing new
    crawl.write("2026/a.txt", b"one, corrected")
    crawl.write("a-new-name-in-front.txt", b"three")
    assert place.look(days=1) == ["news-2026-11-24"]
    assert place.texts() == {
        "news-2026-11-22": ["one", "two"],
        "news-2026-11-24": ["one, corrected", "three"],
    }
    assert place.store.list("sources/news/pulled") == []
    status = place.source().status(place.now)
    assert status.landed == ("news-2026-11-22", "news-2026-11-24")
    assert status.next_due == "2026-11-25T00:00:00+00:00"
    newest = max(info.modified for info in crawl.list("") if info.key.endswith(".txt"))
    assert status.watermark.split()[0] == newest.isoformat()


def test_what_is_too_little_gathers_until_it_is_enough_or_old(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    place = Place(open_store(tmp_path / "store"), prefix=str(crawl), minimum="10 B", max_age="3d")
    (crawl / "a.txt").write_text("aaaa")
    assert place.look() == []
    assert place.source().status(place.now).waiting_bytes == 4
    (crawl / "b.txt").write_text("bbbbbb")
    assert place.look(days=1) == ["news-2026-11-23"]
    (crawl / "c.txt").write_text("c")
    assert place.look(days=1) == []
    assert place.look(days=2.5) == []
    assert place.look(days=0.5) == ["news-2026-11-27"]
    assert place.texts() == {"news-2026-11-23": ["aaaa", "bbbbbb"], "news-2026-11-27": ["c"]}


def test_processes_that_look_at_once_pull_and_land_once(store: Store) -> None:
    """I4: whoever commits first; the others' copies are removed."""
    crawl = store.sub("crawl")
    for number in range(3):
        crawl.write(f"{number}.txt", f"text {number}".encode())
    place = Place(store, prefix=crawl.url)
    with ThreadPoolExecutor(4) as pool:
        landed = list(pool.map(lambda _: place.look(), range(4)))
    assert place.texts() == {"news-2026-11-22": ["text 0", "text 1", "text 2"]}
    assert [name for names in landed for name in names] == ["news-2026-11-22"]
    assert not [line for line in place.told if "failed" in line]
    place.look(days=1)
    assert place.store.list("sources/news/pulled") == []


def test_a_name_that_somebody_else_took_is_left_alone(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    (crawl / "a.txt").write_text("pulled")
    mine = tmp_path / "mine.txt"
    mine.write_text("by hand")
    place = Place(open_store(tmp_path / "store"), prefix=str(crawl))
    corpora.land(place.inbox, "news-2026-11-22", [mine])
    assert place.look() == ["news-2026-11-22.2"]
    assert place.texts() == {"news-2026-11-22": ["by hand"], "news-2026-11-22.2": ["pulled"]}


def test_a_pull_that_cannot_be_written_down_leaves_no_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl" / "a.txt").write_text("one")
    place = Place(open_store(tmp_path / "store"), prefix=str(tmp_path / "crawl"))
    encode = encode_event

    def refuse_pulls(event: SourceEvent) -> bytes:
        if event.kind == "pulled":
            raise ValueError("surrogates not allowed")
        return encode(event)

    monkeypatch.setattr(source, "encode_event", refuse_pulls)
    assert place.look() == []
    assert place.store.list("sources/news/pulled") == []
    monkeypatch.setattr(source, "encode_event", encode)
    assert place.look(days=1) == ["news-2026-11-23"]


def test_a_source_that_fails_is_told_and_tried_again_later(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    place = Place(open_store(tmp_path / "store"), prefix=str(crawl))
    assert place.look() == []
    (line,) = place.told
    assert "source news failed (there is no folder" in line
    assert "again at 2026-11-22 02:01:00 UTC" in line
    assert "there is no folder" in place.source().status(place.now).error
    crawl.mkdir()
    (crawl / "a.txt").write_text("a")
    assert place.look(days=30 / 86400) == []
    assert len(place.told) == 1
    assert place.look(days=30 / 86400) == ["news-2026-11-22"]
    assert place.source().status(place.now).error == ""


def test_what_keeps_failing_is_trouble_with_a_name_until_it_is_mended(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    place = Place(open_store(tmp_path / "store"), prefix=str(crawl))

    def troubles(days: float) -> list[tuple[str, str]]:
        place.now += timedelta(days=days)
        source = place.source()
        source.run_due(place.now, place.told.append)
        return list(source.troubles())

    assert [troubles(1), troubles(1)] == [[], []]
    ((first, problem),) = troubles(1)
    assert problem.startswith("there is no folder")
    ((again, _),) = troubles(1)
    assert again == first
    crawl.mkdir()
    assert troubles(1) == []
    crawl.rmdir()
    assert [troubles(1), troubles(1)] == [[], []]
    ((second, _),) = troubles(1)
    assert second != first
    place.store.write("sources/news/log/000000000099.json", b"{}")
    ((name, problem),) = troubles(1)
    assert (name, "does not exist, and later entries do" in problem) == ("log", True)


PROGRAM = """
import os, pathlib, sys
day = int(os.environ["WATERMARK"] or 0) + 1
out = pathlib.Path(os.environ["OUT"])
(out / "part").mkdir()
(out / "part" / "rows.jsonl").write_text('{"text": "day %d"}' % day)
(out / "notes.md").write_text("not for training")
if sys.argv[1] == "file":
    (out / "_WATERMARK").write_text(f"{day}\\n")
else:
    print("fetched one file", day, sep="\\n")
if day == 3:
    sys.exit("no such day: the key is s3cr3t-value")
"""


@pytest.mark.parametrize("where", ["file", "output"])
def test_a_program_is_told_its_last_watermark(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEWS_TOKEN", "s3cr3t-value")
    place = Place(open_store(tmp_path / "store"), command=[sys.executable, "-c", PROGRAM, where])
    assert place.look() == ["news-2026-11-22"]
    assert place.look(days=1) == ["news-2026-11-23"]
    assert place.look(days=1) == []  # fails: what it wrote is not taken
    assert place.texts() == {
        "news-2026-11-22": ['{"text": "day 1"}'],
        "news-2026-11-23": ['{"text": "day 2"}'],
    }
    assert "pulled 1 files, 17 bytes, passed over 1" in place.told[0]
    assert place.told[-1].endswith("UTC")
    assert "ended with 1: no such day: the key is ***" in place.told[-1]
    assert place.source().status(place.now).watermark == "2"
    assert place.store.list("sources/news/pulled") == []


def test_a_program_that_never_ends_is_ended_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid}; wait"
    place = Place(open_store(tmp_path / "store"), command=["/bin/sh", "-c", script], timeout="1s")
    assert place.look() == []
    assert "took longer than 1s" in place.told[0]
    wait_until_ended(int(pid.read_text()))


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    place = Place(open_store(tmp_path / "store"), command=["no-such-program"])
    assert place.look() == []
    assert "no-such-program cannot be started" in place.told[0]


class Site:
    """A web site of files by path, with ETags or times, that can be made to fail."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.validator = "ETag"
        self.bad: list[str] = []
        self.asked: Counter[tuple[str, int]] = Counter()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        fate = self.bad.pop(0) if self.bad and path.endswith(".txt") else ""
        body = self.files.get(path, b"")
        status = 200 if path in self.files else 404
        headers = {} if path == "/" else self._headers(body)
        asked = {request.headers.get("If-None-Match"), request.headers.get("If-Modified-Since")}
        if headers and set(headers.values()) <= asked:
            status, body = 304, b""
        if fate == "busy":
            status, body = 503, b""
        self.asked[path, status] += 1
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if fate == "half" else body)

    def _headers(self, body: bytes) -> dict[str, str]:
        digest = hashlib.sha256(body).hexdigest()
        if self.validator == "ETag":
            return {"ETag": f'"{digest[:8]}"'}
        if self.validator == "Last-Modified":
            return {"Last-Modified": email.utils.formatdate(int(digest[:7], 16), usegmt=True)}
        return {}

    def page(self, *names: str) -> None:
        self.files["/"] = "".join(f'<a href="{name}">{name}</a>' for name in names).encode()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(http_client, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, args=(0.02,))
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()
    thread.join()


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified", "none"])
def test_an_index_is_asked_for_what_is_new_or_changed(
    validator: str, site: Site, tmp_path: Path
) -> None:
    site.validator = validator
    site.files |= {"/a.txt": b"one", "/b.txt": b"two"}
    site.page("a.txt", "b.txt", "gone.txt", "readme.pdf")
    place = Place(open_store(tmp_path / "store"), index=f"{site.url}/")
    assert place.look() == ["news-2026-11-22"]
    assert "pulled 2 files, 6 bytes, passed over 2" in place.told[0]
    assert place.look(days=1) == []
    assert site.asked["/a.txt", 200] == 1
    assert site.asked["/a.txt", 304] == (0 if validator == "none" else 1)
    site.files |= {"/a.txt": b"one, corrected", "/c.txt": b"three"}
    site.page("a.txt", "b.txt", "c.txt")
    place.look(days=1)
    changed = [] if validator == "none" else ["one, corrected"]
    assert place.texts()["news-2026-11-24"] == ["three", *changed]


def test_a_json_index_that_tells_versions_spares_the_questions(site: Site, tmp_path: Path) -> None:
    site.files |= {"/a.txt": b"one", "/": b'[{"url": "a.txt", "version": "v1"}]'}
    place = Place(open_store(tmp_path / "store"), index=f"{site.url}/")
    assert place.look() == ["news-2026-11-22"]
    assert place.look(days=1) == []
    assert sum(count for (path, _), count in site.asked.items() if path == "/a.txt") == 1
    site.files |= {"/": b'[{"url": "a.txt", "version": "v2"}]'}
    assert place.look(days=1) == ["news-2026-11-24"]


def test_answers_that_break_off_or_are_busy_are_asked_for_again(site: Site, tmp_path: Path) -> None:
    site.files |= {"/a.txt": b"x" * 100_000}
    site.page("a.txt")
    site.bad = ["busy", "half", "busy"]
    place = Place(open_store(tmp_path / "store"), index=f"{site.url}/")
    assert place.look() == ["news-2026-11-22"]
    assert place.texts() == {"news-2026-11-22": ["x" * 100_000]}


def test_a_site_that_stays_broken_fails_without_its_secrets(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site.files |= {"/a.txt": b"one"}
    site.page("a.txt?sig=hunter2hunter2")
    site.bad = ["busy"] * 4
    place = Place(open_store(tmp_path / "store"), index=f"{site.url}/")
    assert place.look() == []
    assert "a.txt?sig=*** answered 503" in place.told[0]
    assert place.look(days=1) == ["news-2026-11-23"]
    kept = b"".join(place.store.read(info.key) for info in place.store.list("sources"))
    assert b"hunter2" not in kept
    refused = Place(open_store(tmp_path / "other"), index=f"{site.url}/nothing/")
    refused.look()
    assert "answered 404" in refused.told[0]
    nobody = Place(open_store(tmp_path / "third"), index="http://127.0.0.1:9/")
    nobody.look()
    assert "http://127.0.0.1:9/ cannot be read: " in nobody.told[0]
    assert "Connection refused" in nobody.told[0]
