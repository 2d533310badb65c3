"""Feeds that lie, stall, redirect and break off: the good files land, the bad ones are named."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from perennial import corpora
from perennial.config import SourceSpec, load_run, parse
from perennial.controller.context import Workspace
from perennial.controller.source_poller import open_sources, pull_due
from perennial.sources import DataSource, SourceStatus, http_client
from perennial.store import open_store
from tests.support.hostile_site import (
    Drip,
    HostileSite,
    Part,
    body,
    head,
    make_certificate,
    redirect,
)
from tests.support.hostile_site import serve_hostile_site as serve
from tests.support.processes import wait_until_ended
from tests.support.tiny_run import tiny_run, write_run

NOW = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
GOOD = b"a good text"


class Feed:
    """A source over a hostile site, and what it said."""

    def __init__(self, folder: Path, site: HostileSite, **fields: Any) -> None:
        self.site = site
        self.store = open_store(folder / "store")
        self.now = NOW
        self.lines: list[str] = []
        place = {} if "command" in fields or "prefix" in fields else {"index": f"{site.url}/"}
        self.spec = parse({"schedule": "1d", **place, **fields}, SourceSpec, "run.yaml")

    def source(self) -> DataSource:
        """Return the source as a new process finds it."""
        return DataSource("feed", self.spec, self.store, self.store.sub("inbox"), 1)

    def names(self, *entries: object) -> None:
        """Let the index name these files, and a good one before and after them."""
        self.site.answers |= {"/0.txt": body(GOOD), "/z.txt": body(GOOD)}
        self.site.answers["/"] = body(json.dumps(["0.txt", *entries, "z.txt"]).encode())

    def look(self, after: timedelta = timedelta(0)) -> list[str]:
        """Do what is due; return the texts that landed by it."""
        self.now += after
        inbox = self.store.sub("inbox")
        names = self.source().run_due(self.now, self.lines.append)
        landed = [corpora.read_landed(inbox, name) for name in names]
        return [
            inbox.read(f"{corpus.name}/{file.name}").decode("latin-1")
            for corpus in landed
            for file in corpus.files
        ]

    def status(self) -> SourceStatus:
        """Return the status as another process shows it."""
        return self.source().status(self.now)

    def reason(self) -> str:
        """Return why the one bad file is bad."""
        (bad,) = self.status().bad_files
        return bad.reason


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def site() -> Iterator[HostileSite]:
    with serve() as site:
        yield site


def sized(**promises: object) -> dict[str, object]:
    return {"url": "bad.txt", **promises}


CHUNKED = head("Transfer-Encoding: chunked")
ENDLESS = b"x" * 400_000
BAD: list[tuple[str, object, list[Part], str]] = [
    ("names another host", "http://localhost:{port}/b.txt", [], "is on another host"),
    ("names metadata", "http://169.254.169.254/b.txt", [], "is on another host"),
    ("names a file", "file:///etc/b.txt", [], "is no http address|is no address"),
    ("names a user", "http://a:hunter2@127.0.0.1:{port}/b.txt", [], "user or password"),
    ("names a number", "http://2130706433:{port}/b.txt", [], "is on another host"),
    ("names another port", "http://127.0.0.1:9/b.txt", [], "is on another port"),
    ("redirects away", "bad.txt", redirect("http://localhost:{port}/b"), "redirected.*another"),
    ("redirects in 307", "bad.txt", redirect("//evil.org/", "307 T"), "redirected.*another host"),
    ("redirects to a file", "bad.txt", redirect("file:///etc/passwd"), "redirected.*no http"),
    ("redirects to itself", "bad.txt", redirect("bad.txt"), "redirected more than 5 times"),
    ("redirects to junk", "bad.txt", redirect("http://[::1"), "redirected to something"),
    ("larger than announced", sized(bytes=3), body(b"four"), "4 bytes, and the index says 3"),
    (
        "larger, in chunks",
        sized(bytes=3),
        [CHUNKED, b"4\r\nfour\r\n0\r\n\r\n"],
        "longer than the 3",
    ),
    ("larger, unmarked", sized(bytes=3), [head(), b"four"], "longer than the 3 bytes"),
    ("smaller than promised", sized(bytes=9), [head(), b"four"], "4 bytes, where the index says 9"),
    ("announces too much", "bad.txt", [head("Content-Length: 9000000")], "more than `max_file`"),
    ("sends too much", "bad.txt", [CHUNKED, b"61A80\r\n", ENDLESS], "more than `max_file`"),
    ("promises too much", sized(bytes=10**15), body(b"x"), "more than `max_file`"),
    ("another digest", sized(sha256="0" * 64), body(b"four"), "its sha256 differs"),
    ("breaks off", "bad.txt", [head("Content-Length: 9"), b"four"], "cannot be read"),
    ("breaks off a chunk", "bad.txt", [CHUNKED, b"9\r\nfour"], "cannot be read"),
    ("breaks off chunks", "bad.txt", [CHUNKED, b"4\r\nfour\r\n"], "cannot be read.*prematurely"),
    ("a negative chunk", "bad.txt", [CHUNKED, b"-1\r\n", ENDLESS], "chunk of negative size"),
    ("has no end", "bad.txt", [head(version="1.0"), b"four"], "`unsized: true`"),
    ("has no length", "bad.txt", [head("Connection: close"), b"four"], "give `bytes` or"),
    ("a wrong length", "bad.txt", [head("Content-Length: 4x"), b"four"], "Content-Length is '4x'"),
    ("another encoding", "bad.txt", body(b"x", "Content-Encoding: gzip"), "was not asked for"),
    ("no protocol", "bad.txt", [b"\x00\xff\r\n\r\n"], "cannot be read"),
    ("no answer", "bad.txt", [], "cannot be read"),
    ("a part unasked", "bad.txt", body(b"x", status="206 Partial Content"), "answered 206"),
    ("unchanged unasked", "bad.txt", body(b"", status="304 Same"), "answered 304"),
    ("escape codes", "bad.txt", body(b"", status="418 \x1b[31mred"), "answered 418 \\[31mred"),
    ("no entry", 7, [], "entry 2 of .* is left out: it is neither"),
    ("no url", {"name": "a.txt"}, [], "entry 2 of .* is left out: it is neither"),
    ("no address", "http://[::1/b.txt", [], "entry 2 of .* is left out: its `url` is no address"),
    ("no size", sized(bytes=-1), [], "entry 2 of .* is left out: its `bytes`"),
    ("no digest", sized(sha256="12"), [], "entry 2 of .* is left out: its `sha256`"),
    ("a long version", sized(version="1" * 5000), [], "its `version` has more than"),
    ("a control character", "b\x01.txt", [], "a control character"),
]


@pytest.mark.parametrize(
    ("entry", "answer", "reason"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_a_bad_file_is_named_and_the_good_ones_land(
    entry: object, answer: list[Part], reason: str, site: HostileSite, tmp_path: Path
) -> None:
    feed = Feed(tmp_path, site, max_file="200 kB", max_pull="900 kB")
    entry = json.loads(json.dumps(entry).replace("{port}", str(site.port)))
    site.answers["/bad.txt"] = [
        part.replace(b"{port}", str(site.port).encode()) if isinstance(part, bytes) else part
        for part in answer
    ]
    site.answers["/b"] = site.answers["/b.txt"] = body(b"of another place")
    feed.names(entry)
    assert feed.look() == [GOOD.decode()] * 2
    assert re_search(reason, feed.reason())
    assert site.asked["/b"] + site.asked["/b.txt"] == 0
    assert re_search(reason, "\n".join(feed.lines))
    kept = b"".join(feed.store.read(info.key) for info in feed.store.list(""))
    assert b"hunter2" not in kept + "".join(feed.lines).encode()


def re_search(pattern: str, text: str) -> bool:
    assert re.search(pattern, text), text
    return True


GOOD_ONES: list[tuple[str, object, list[Part], dict[str, Any]]] = [
    ("promised size", sized(bytes=4), [head(version="1.0"), b"four"], {}),
    ("promised digest", sized(sha256=hashlib.sha256(b"four").hexdigest().upper()),
     [head(), b"four"], {}),
    ("unsized", "bad.txt", [head(version="1.0"), b"four"], {"unsized": True}),
    ("chunks", "bad.txt", [CHUNKED, b"2\r\nfo\r\n2;x=y\r\nur\r\n0\r\nT: 1\r\n\r\n"], {}),
    ("redirect", "bad.txt", redirect("/there.bin"), {}),
    ("redirect to an allowed host", "bad.txt", redirect("http://localhost:{port}/there.bin"),
     {"hosts": ["localhost:{port}"], "private": True}),
    ("odd name", "..%2F%00%5C%E2%80%AEbad.txt", [], {}),
    ("long name", "x" * 3000 + ".txt", [], {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "answer", "fields"), [g[1:] for g in GOOD_ONES], ids=[g[0] for g in GOOD_ONES]
)
def test_a_file_that_is_whole_lands(
    entry: object, answer: list[Part], fields: dict[str, Any], site: HostileSite, tmp_path: Path
) -> None:
    port = str(site.port)
    fields = json.loads(json.dumps(fields).replace("{port}", port))
    feed = Feed(tmp_path, site, **fields)
    paths = ["/there.bin", "/..%2F%00%5C%E2%80%AEbad.txt", f"/{'x' * 3000}.txt"]
    site.answers |= {path: body(b"four") for path in paths}
    if answer:
        first, *rest = answer
        assert isinstance(first, bytes)
        site.answers["/bad.txt"] = [first.replace(b"{port}", port.encode()), *rest]
    feed.names(entry)
    texts = feed.look()
    assert sorted(texts) == sorted([GOOD.decode(), "four", GOOD.decode()]), feed.lines
    for info in feed.store.list("inbox"):
        assert info.key.isascii()
        assert len(info.key) < 200


def test_a_server_that_drips_is_cut_off(site: HostileSite, tmp_path: Path) -> None:
    """At each place: the status, a header, the body, a chunk; each byte comes in time."""
    feed = Feed(tmp_path, site)
    # Shorter than a run file can ask for.
    feed.spec = feed.spec.model_copy(update={"file_timeout": timedelta(seconds=0.6)})
    drips: list[list[Part]] = [
        [Drip()], [b"HTTP/1.1 200 OK\r\nX: ", Drip()], [head("Content-Length: 99999"), Drip()],
        [CHUNKED, b"fffff\r\n", Drip()], [head("Content-Length: 9", status="302 F"), Drip()],
        [Drip(b"HTTP/1.1 100 Continue\r\n\r\n")],
    ]  # fmt: skip
    site.answers |= {f"/{number}d.txt": drip for number, drip in enumerate(drips)}
    feed.names(*(f"{number}d.txt" for number in range(len(drips))))
    assert feed.look() == [GOOD.decode()] * 2
    reasons = [file.reason for file in feed.status().bad_files]
    assert len(reasons) == len(drips)
    late = [reason for reason in reasons if "took longer than `file_timeout`" in reason]
    assert len(late) == len(drips) - 1, reasons  # the redirect leads nowhere, and its body is left


def test_a_server_with_a_certificate_is_cut_off_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket belongs to TLS; and a feed of https stays one."""
    certificate, context = make_certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with serve(context) as site:
        url = f"https://127.0.0.1:{site.port}/"
        feed = Feed(tmp_path, site, index=url)
        feed.spec = feed.spec.model_copy(update={"file_timeout": timedelta(seconds=1)})
        site.answers |= {"/drip.txt": [head("Content-Length: 999999"), Drip()]}
        site.answers["/plain.txt"] = redirect(f"http://127.0.0.1:{site.port}/0.txt")
        feed.names("drip.txt", "plain.txt")
        assert feed.look() == [GOOD.decode()] * 2, feed.lines
        late, plain = sorted(file.reason for file in feed.status().bad_files)
        assert "took longer than `file_timeout`" in late
        assert "read over http, unlike the index" in plain
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        feed.look(timedelta(days=1))
        assert "certificate" in feed.status().error


def test_an_index_that_drips_fails_its_source_alone(site: HostileSite, tmp_path: Path) -> None:
    """A source that waits holds neither the other sources nor a later look at them."""
    held = threading.Event()
    document = tiny_run(tmp_path)
    with serve() as slow:
        slow.answers["/"] = [head("Content-Length: 2"), held, b"[]"]
        site.answers |= {"/": body(b'["a.txt"]'), "/a.txt": body(GOOD * 1000)}
        document["sources"] = {
            "slow": {"index": f"{slow.url}/", "schedule": "1d"},
            "quick": {"index": f"{site.url}/", "schedule": "1d"},
        }
        work = Workspace(load_run(write_run(tmp_path, document)), "run.yaml")
        landed: list[str] = []
        sources = open_sources(work)
        puller = threading.Thread(target=lambda: landed.extend(pull_due(work, sources, NOW)))
        puller.start()
        while not work.inbox.exists("quick-2026-11-22/_SUCCESS"):
            assert puller.is_alive()
        assert slow.asked["/"] <= 1
        held.set()
        puller.join()
        assert landed == ["quick-2026-11-22"]


def resolves_to(*addresses: str) -> Callable[..., list[Any]]:
    """Stand in for a name server, one answer after another; the real one has no such names."""
    left = list(addresses)
    real = socket.getaddrinfo

    def look_up(name: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if not name.endswith(".test"):
            return real(name, port, type=socket.SOCK_STREAM)
        answer = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, port))]

    return look_up


def test_a_name_is_looked_up_once_and_refused_where_it_leads(
    site: HostileSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Feed(tmp_path, site, index=f"http://feed.test:{site.port}/")
    feed.names()
    # What a name is checked for and what it is connected to are one answer: a second look-up,
    # which is private here, would reach the site.
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("127.0.0.1"))
    assert feed.look() == []
    assert "leads to the address 127.0.0.1, which is not public; `private: true`" in feed.lines[0]
    assert not site.asked
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("192.0.2.1", "127.0.0.1"))
    feed.look(timedelta(days=1))
    assert not site.asked
    feed.spec = parse(
        {"schedule": "1d", "index": f"http://feed.test:{site.port}/", "private": True},
        SourceSpec, "run.yaml",
    )  # fmt: skip
    assert feed.look(timedelta(days=1)) == [GOOD.decode()] * 2


def test_a_proxy_is_used_where_the_source_says_so(
    site: HostileSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("HTTP_PROXY", site.url)
    monkeypatch.setenv("http_proxy", site.url)
    site.answers |= {
        "http://feed.test/": body(b'["a.txt"]'),
        "http://feed.test/a.txt": body(GOOD),
    }
    feed = Feed(tmp_path, site, index="http://feed.test/")
    assert feed.look() == []
    assert "set `proxy: true`, or name the host in NO_PROXY" in feed.lines[0]
    assert not site.asked
    proxied = Feed(tmp_path / "other", site, index="http://feed.test/", proxy=True)
    assert proxied.look() == [GOOD.decode()]


def test_a_password_goes_to_its_own_host_alone(
    site: HostileSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with serve() as other:
        feed = Feed(tmp_path, site, hosts=[f"localhost:{other.port}"], private=True)
        feed.names("b.txt")
        site.answers["/b.txt"] = redirect(f"http://localhost:{other.port}/b.txt")
        other.answers["/b.txt"] = body(b"b")
        assert sorted(feed.look()) == sorted(["b", GOOD.decode(), GOOD.decode()])
        assert "Authorization: Basic" in site.headers["/0.txt"]
        assert "Authorization" not in other.headers["/b.txt"]
        netrc.write_text("machine localhost login you password other\n")
        site.answers["/"] = body(b'["c.txt"]')
        site.answers["/c.txt"] = redirect(f"http://localhost:{other.port}/b.txt")
        feed.look(timedelta(days=1))
        assert "Authorization: Basic" in other.headers["/b.txt"]
        assert "Authorization" not in site.headers["/c.txt"]


def test_a_bad_file_is_tried_again_later_and_later_and_at_once_when_it_changed(
    site: HostileSite, tmp_path: Path
) -> None:
    feed = Feed(tmp_path, site)
    feed.names(sized(version="1"))
    site.answers["/bad.txt"] = body(b"", status="403 Forbidden")
    feed.look()
    waits = []
    for _ in range(3):
        (bad,) = feed.status().bad_files
        assert feed.status().next_due == bad.next_try
        wait = datetime.fromisoformat(bad.next_try) - feed.now
        waits.append(wait // timedelta(minutes=1))
        asked = site.asked["/bad.txt"]
        feed.look(wait - timedelta(seconds=1))
        assert site.asked["/bad.txt"] == asked
        feed.look(timedelta(seconds=1))
        assert site.asked["/bad.txt"] == asked + 1
    assert waits == [1, 2, 4]
    feed.names(sized(version="2"), {"url": "new.txt", "version": "1"})
    site.answers |= {"/bad.txt": body(b"mended"), "/new.txt": body(b"", status="500 No")}
    # The index is read again when the first version is due; the second is tried with it.
    assert "mended" in feed.look(timedelta(minutes=8))
    assert [file.origin for file in feed.status().bad_files] == [f"{site.url}/new.txt"]
    feed.names()
    feed.look(timedelta(days=1))
    assert feed.status().bad_files == ()


def test_what_does_not_fit_into_a_pull_comes_with_the_next_one(
    site: HostileSite, tmp_path: Path
) -> None:
    feed = Feed(tmp_path, site, max_file="2 kB", max_pull="2 kB")
    site.answers |= {f"/{n}.txt": body(bytes([97 + n]) * 900) for n in range(5)}
    site.answers["/"] = body(json.dumps([f"{n}.txt" for n in range(5)]).encode())
    texts: list[str] = []
    rests = []
    for day in range(3):
        texts += feed.look(timedelta(days=min(day, 1)))
        rests.append(feed.status().rest)
    assert sorted(texts) == [letter * 900 for letter in "abcde"]
    assert "left" in "".join(feed.lines)
    assert rests[-1] == 0


def test_a_site_that_fails_throughout_is_not_asked_for_everything(
    site: HostileSite, tmp_path: Path
) -> None:
    feed = Feed(tmp_path, site)
    site.answers["/"] = body(json.dumps([f"{n}.txt" for n in range(90)]).encode())
    site.answers |= {f"/{n}.txt": body(b"", status="403 No") for n in range(90)}
    assert feed.look() == []
    assert len(feed.status().bad_files) == 20
    assert feed.status().rest == 70


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (redirect("http://localhost:9/"), "redirected.*another host"),
        (body(b"[" + b"{}," * 5_000_000 + b"{}]"), "more than 500,000 files"),
        ([CHUNKED, *[b"1000000\r\n" + b"x" * (1 << 24) + b"\r\n"] * 5], "longer than 64 MiB"),
        ([head("Content-Length: 9"), b'["a.txt"]'[:5]], "cannot be read"),
        (body(b'["a.txt"'), "is no index"),
    ],
    ids=["redirected", "entries", "bytes", "cut off", "no JSON"],
)  # fmt: skip
def test_an_index_that_cannot_be_believed_fails_the_pull(
    answer: list[Part], reason: str, site: HostileSite, tmp_path: Path
) -> None:
    feed = Feed(tmp_path, site)
    site.answers["/"] = answer
    assert feed.look() == []
    assert re_search(reason, feed.status().error)


def test_a_rotated_token_is_no_new_file_and_is_kept_nowhere(
    site: HostileSite, tmp_path: Path
) -> None:
    feed = Feed(tmp_path, site, secrets=["st"])
    for day, token in enumerate(("hunter2-january", "hunter2-february")):
        for path in ("/0.txt", "/z.txt"):
            site.answers[f"{path}?access_token={token}&st={token}&page=1"] = body(GOOD)
        listed = [f"{name}.txt?access_token={token}&st={token}&page=1" for name in "0z"]
        site.answers["/"] = body(json.dumps([*listed, f"gone.txt?own={token}"]).encode())
        assert len(feed.look(timedelta(days=day))) == 2 * (day == 0)
    site.answers["/"] = body(b"", status="500 see /?own=hunter2-march")
    feed.look(timedelta(days=1))
    kept = b"".join(feed.store.read(info.key) for info in feed.store.list(""))
    assert b"hunter2" not in kept
    assert "hunter2" not in "".join(feed.lines) + repr(feed.status())


@contextmanager
def broken(feed: Feed, number: int, data: bytes | None) -> Iterator[None]:
    """Replace an entry of the feed's log, or remove it."""
    key = f"sources/feed/log/{number:012d}.json"
    before = feed.store.read(key)
    feed.store.remove(key)
    if data is not None:
        feed.store.write(key, data)
    yield
    feed.store.write(key, before)


@pytest.mark.parametrize(
    "data", [b"", b'{"kind": "pul', b'{"kind": "claimed"}', b"\xff", b"[]", None]
)
def test_a_log_that_is_broken_is_shown_and_not_written(
    data: bytes | None, site: HostileSite, tmp_path: Path
) -> None:
    feed = Feed(tmp_path, site)
    feed.names()
    feed.look()
    for number in range(2):
        with broken(feed, number, data):
            before = feed.store.list("")
            source = feed.source()
            for _ in range(3):
                assert source.run_due(feed.now + timedelta(days=1), feed.lines.append) == []
            status = feed.status()
            assert f"sources/feed/log/{number:012d}.json" in status.error
            assert "restore it from a copy of the store" in status.error
            assert feed.store.list("") == before
    assert len([line for line in feed.lines if "cannot be written" in line]) == 2
    assert feed.status().error == ""


def test_a_folder_with_a_pipe_and_a_large_file_gives_the_others(
    site: HostileSite, tmp_path: Path
) -> None:
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    (crawl / "a.txt").write_bytes(GOOD)
    (crawl / "large.txt").write_bytes(b"x" * 2001)
    os.mkfifo(crawl / "pipe.txt")
    (crawl / os.fsdecode(b"z\xff.txt")).write_bytes(GOOD)
    feed = Feed(tmp_path, site, prefix=str(crawl), max_file="2 kB")
    assert feed.look() == [GOOD.decode()]
    reasons = sorted(file.reason for file in feed.status().bad_files)
    assert re_search("large.txt has 2,001 bytes, more than `max_file`, which is 2 kB", reasons[0])
    assert re_search("pipe.txt is no regular file", reasons[1])
    assert re_search("txt has a name that no store takes", reasons[2])
    assert feed.look(timedelta(days=1)) == []


def test_a_program_gives_its_sound_files(site: HostileSite, tmp_path: Path) -> None:
    script = (
        "cd $OUT; printf 'a good text' > a.txt; head -c 2001 /dev/zero > large.txt; "
        "ln -s /etc/passwd link.txt; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo mark; "
        "sleep 600 >/dev/null 2>&1 &"
    )
    feed = Feed(tmp_path, site, command=["/bin/sh", "-c", script], max_file="2 kB")
    assert feed.look() == [GOOD.decode()]
    assert feed.status().watermark == "mark"
    reasons = sorted(file.reason for file in feed.status().bad_files)
    assert re_search("large.txt has 2,001 bytes", reasons[0])
    assert re_search("link.txt is a link", reasons[1])
    full = Feed(tmp_path / "full", site, command=["/bin/sh", "-c", script],
                max_file="2 kB", max_pull="2 kB")  # fmt: skip
    assert full.look() == [GOOD.decode()]
    most = script.replace("2001", "1999")
    full.spec = parse(
        {"command": ["/bin/sh", "-c", most], "schedule": "1d", "max_file": "2 kB",
         "max_pull": "2 kB"}, SourceSpec, "run.yaml")  # fmt: skip
    assert full.look(timedelta(days=1)) == []
    assert "wrote 2,010 bytes, more than `max_pull` of 2 kB" in full.status().error
    assert full.status().watermark == "mark"


def test_a_pull_that_is_broken_off_ends_its_program(site: HostileSite, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid}.new; mv {pid}.new {pid}; wait"
    feed = Feed(tmp_path, site, command=["/bin/sh", "-c", script])
    source = feed.source()
    thread = threading.Thread(target=source.run_due, args=(NOW, feed.lines.append))
    thread.start()
    while not pid.exists():
        assert thread.is_alive()
    source.stop()
    thread.join()
    wait_until_ended(int(pid.read_text()))
    assert feed.lines == []
    assert feed.store.list("sources/feed/log") == []
