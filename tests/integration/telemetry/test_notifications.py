"""Notifications to a real web server, a stand-in for a mail server, and a real program."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.controller.loop import _look
from perennial.controller.source_poller import open_sources, pull_due
from perennial.errors import StorageFull
from perennial.runs.events import Failed, Released, Releasing
from perennial.telemetry.notify_observer import FOLDER, NotifyObserver
from perennial.training.ray.progress_actor import Progress
from tests.support.event_factory import AT, WALK, event_of, released, releasing
from tests.support.logged_lines import LoggedLines
from tests.support.mail_server import mail_server, make_certificate
from tests.support.tiny_run import tiny_run

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
SECRET = "/services/T00/B00/hush-hush"


class Hook(ThreadingHTTPServer):
    """An incoming webhook."""

    daemon_threads = True
    status = 200
    taken: list[Any]
    released: threading.Event

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.released.wait(30)
        self.server.taken.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(self.server.status)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(b"no_service" if self.server.status >= 400 else b"ok")

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    with Hook(("127.0.0.1", 0), _Handler) as server:
        server.taken, server.released = [], threading.Event()
        server.released.set()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OPS_HOOK", server.address)
        yield server
        server.released.set()
        server.shutdown()


@contextmanager
def work_of(url: str, **notify: Any) -> Iterator[tuple[Workspace, LoggedLines, NotifyObserver]]:
    """A controller that tells what `notify` asks for."""
    document = tiny_run(Path("/nowhere"), url) | {"notify": notify}
    spec, lines = RunSpec.model_validate(document), LoggedLines()
    observer = NotifyObserver(spec.notify)
    work = Workspace(spec, "run.yaml", [lines, observer])
    work.check_run()
    observer.check(work)
    work.take_charge()
    try:
        yield work, lines, observer
    finally:
        work.close()


def _tell(work: Workspace, corpus: str, *kinds: str) -> None:
    for kind in kinds:
        work.record(event_of(kind, work.state, corpus))
    work.notify(lambda observer: observer.looked(work))


def _texts(hook: Hook) -> list[str]:
    return [body["text"] for _, _, body in hook.taken]


def test_a_gate_and_a_failure_are_told_once_by_any_number_of_processes(
    store_url: str, hook: Hook
) -> None:
    for _ in range(2):
        with work_of(store_url, webhook="env:OPS_HOOK") as (work, lines, _observer):
            if "a" not in work.state.corpora:
                _tell(work, "a", *WALK[:-1], "gated")
                _tell(work, "b", "landed", "failed")
            for _ in range(3):
                work.notify(lambda observer: observer.looked(work))
        assert lines.lines == []
    gate, failure = _texts(hook)
    assert gate.startswith("*tiny: a gate stopped 00-a; the run is paused until you decide*\n")
    assert "max_adaptation of a: 1, bound 0.9" in gate
    assert failure.startswith("*tiny: b failed (attempt 1 of 3; it waits for `perennial retry`)*")
    assert "it broke" in failure
    assert hook.taken[0][:2] == (SECRET, "application/json")
    with work_of(store_url, webhook="env:OPS_HOOK") as (work, _, _observer):
        _tell(work, "b", "retried", "failed")
    assert len(hook.taken) == 3, "another failure is told"
    marks = [info.key for info in work.store.list(FOLDER)]
    assert len(marks) == 3
    whole = b"".join(work.store.read(info.key) for info in work.store.list())
    assert b"hush-hush" not in whole


def test_a_process_that_was_killed_before_it_told_leaves_it_to_the_next(
    store_url: str, hook: Hook
) -> None:
    with work_of(store_url) as (work, _, _observer):
        _tell(work, "a", *WALK[:-1], "gated")
    assert hook.taken == []
    with work_of(store_url, webhook="env:OPS_HOOK") as (work, _, _observer):
        work.notify(lambda observer: observer.looked(work))
    assert len(hook.taken) == 1


def test_every_kind_has_its_words_and_can_be_left_out(tmp_path: Path, hook: Hook) -> None:
    url = str(tmp_path / "store")

    def happen(work: Workspace) -> None:
        _tell(work, "a", *(WALK if "a" not in work.state.corpora else ()))
        claimed, made = releasing(work.state, "r"), released("r")
        assert isinstance(claimed, Releasing) and isinstance(made, Released)
        work.notify(lambda observer: observer.release_made(work, claimed, made))
        trouble = ("HTTP 503 <!channel>", "pull-0-0")
        work.notify(lambda observer: observer.source_in_trouble(work, "news", *trouble))
        work.setbacks["r2"] = Failed(
            at=AT, corpus="r2", attempt=3, attempts=3, reason="no room", next_try=None
        )
        work.notify(lambda observer: observer.looked(work))
        full = StorageFull("/store: No space left on device; free room")
        work.notify(lambda observer: observer.look_failed(work, full))

    with work_of(url, webhook="env:OPS_HOOK", events=["source", "failure"]) as (work, _, _observer):
        happen(work)
    first = _texts(hook)
    assert first[0].startswith("*tiny: source news is in trouble*\nHTTP 503 &lt;!channel&gt;\n"), (
        "nothing is a mention"
    )
    assert "release r2 failed (attempt 3 of 3; make it with `perennial release`)" in first[1]
    assert "a look at the inbox failed" in first[2]
    assert len(first) == 3
    with work_of(url, webhook="env:OPS_HOOK", events=["release"]) as (work, _, _observer):
        happen(work)
    assert _texts(hook)[3].startswith("*tiny: release r is made: r*")
    assert len(hook.taken) == 4


@pytest.mark.parametrize(("status", "told"), [(404, "HTTP 404: no_service"), (302, "HTTP 302: ok")])
def test_a_refusal_is_a_line_without_the_address_and_is_tried_again_later(
    tmp_path: Path, hook: Hook, status: int, told: str
) -> None:
    url = str(tmp_path / "store")
    hook.status = status
    with work_of(url, webhook="env:OPS_HOOK") as (work, lines, _observer):
        _tell(work, "a", *WALK[:-1], "gated")
        work.notify(lambda observer: observer.looked(work))
    (line,) = lines.lines
    assert line.startswith("notice: notify.webhook: 'tiny: a gate stopped 00-a;")
    assert line.endswith(f"was not sent ({told})")
    assert "hush" not in line
    hook.status = 200
    with work_of(url, webhook="env:OPS_HOOK") as (work, lines, _observer):
        work.notify(lambda observer: observer.looked(work))
    assert (len(hook.taken), lines.lines) == (2, [])


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:1/hush-hush", "Connection refused"),
        ("hush-hush", "env:OPS_HOOK is no http(s) address"),
        ("http://127.0.0.1:1/hush hush", "URL can't contain control characters"),
        ("http://[hush-hush", "Invalid IPv6 URL"),
        ("", "the environment variable OPS_HOOK is not set"),
    ],
)
def test_an_address_that_cannot_be_used_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, told: str
) -> None:
    monkeypatch.setenv("OPS_HOOK", address)
    with work_of(str(tmp_path / "store"), webhook="env:OPS_HOOK") as (work, lines, _observer):
        _tell(work, "a", *WALK[:-1], "gated")
    assert told in lines.lines[-1]
    assert "hush" not in "".join(lines.lines)
    assert len(lines.lines) == (2 if not address else 1), "a missing one is named at once, too"


def test_no_hook_waits_for_a_server_and_the_end_waits_for_a_bounded_time(
    tmp_path: Path, hook: Hook
) -> None:
    hook.released.clear()  # it takes connections and answers none
    notify = {"webhook": "env:OPS_HOOK", "timeout": timedelta(seconds=0.3)}
    with work_of(str(tmp_path / "store"), **notify) as (work, lines, _observer):
        _tell(work, "a", *WALK[:-1], "gated")
        assert hook.taken == [], "the hook returned, and nothing was answered"
        _tell(work, "b", "landed", "failed")
    # Here without the server's answer.
    assert hook.taken == []
    assert any("was not sent" in line or "not sent within 0.3 s" in line for line in lines.lines)


def test_a_stall_is_told_once_and_again_after_it_went_on(tmp_path: Path, hook: Hook) -> None:
    notify = {"webhook": "env:OPS_HOOK", "stall_after": timedelta(seconds=0.2)}
    job: Any = type("Job", (), {"name": "00-a", "first_step": 3})
    with work_of(str(tmp_path / "store"), **notify) as (work, _, observer):
        observer.job_began(work, job)
        for number, step in enumerate((3, 4), start=1):
            _until(lambda number=number: len(hook.taken) == number)
            assert f"00-a has made no step for 0.2 s; it is at step {step}" in _texts(hook)[-1]
            observer.job_progressed(work, job, Progress(rows=[{"step": step + 1}]))
        observer.job_ended(work, job)
    assert len(hook.taken) == 2


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_mail_goes_by_starttls_with_a_password_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    (tmp_path / "password").write_text("hush-hush\n")
    with mail_server(certificate) as server:
        email = {
            "to": ["ops@example.org", "me@example.org"],
            "sender": "perennial@example.org",
            "host": "localhost",
            "port": server.port,
            "user": "perennial",
            "password": f"file:{tmp_path / 'password'}",
        }
        with work_of(str(tmp_path / "store"), email=email) as (work, lines, _observer):
            _tell(work, "a", *WALK[:-1], "gated")
        assert lines.lines == []
    (message,) = server.messages
    assert server.logins == [("perennial", "hush-hush")]
    assert message["Subject"].startswith("[perennial] tiny: a gate stopped 00-a;")
    assert message["To"] == "ops@example.org, me@example.org"
    assert "max_adaptation of a" in message.get_content()
    assert f"store {work.store.url}" in message.get_content()


def test_mail_that_is_refused_is_a_line_and_other_ways_go_on(tmp_path: Path, hook: Hook) -> None:
    with mail_server(refuses="RCPT") as server:
        email = {
            "to": ["ops@example.org"],
            "sender": "perennial@example.org",
            "host": "127.0.0.1",
            "port": server.port,
            "security": "none",
        }
        ways = {"email": email, "webhook": "env:OPS_HOOK"}
        with work_of(str(tmp_path / "store"), **ways) as (work, lines, _observer):
            _tell(work, "a", *WALK[:-1], "gated")
    (line,) = lines.lines
    assert line.startswith("notice: notify.email: ")
    assert "this server takes no RCPT" in line
    assert (len(hook.taken), server.messages) == (1, [])


PROGRAM = """
import json, sys
notice = json.load(sys.stdin)
open(sys.argv[1], "a").write(notice["on"] + " " + notice["subject"] + "\\n")
sys.exit(notice["text"] if len(sys.argv) > 2 else 0)
"""


def test_a_program_reads_the_notification_as_json(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "told")]
    with work_of(str(tmp_path / "store"), command=command) as (work, lines, _observer):
        _tell(work, "a", *WALK[:-1], "gated")
    assert ((tmp_path / "told").read_text(), lines.lines) == ("gate 00-a\n", [])


@pytest.mark.parametrize(
    ("words", "seconds", "told"),
    [
        (
            [sys.executable, "-c", PROGRAM, "/dev/null", "fails"],
            60,
            "ended with 1: `perennial status`",
        ),
        (["/no/such/program"], 60, "No such file or directory: '/no/such/program'"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], 0.3, "took longer than 0.3 s"),
    ],
)
def test_a_program_that_fails_or_hangs_is_a_line(
    tmp_path: Path, words: list[str], seconds: float, told: str
) -> None:
    notify = {"command": words, "timeout": timedelta(seconds=seconds)}
    with work_of(str(tmp_path / "store"), **notify) as (work, lines, _observer):
        _tell(work, "a", *WALK[:-1], "gated")
        _until(lambda: lines.lines)
    shown = " ".join(lines.lines)
    assert told in shown or "no answer within 0.3 s" in shown


def test_a_source_that_keeps_failing_is_told_once_an_episode(tmp_path: Path, hook: Hook) -> None:
    crawl, minutes = tmp_path / "crawl", iter(range(0, 600, 60))

    def look(times: int) -> int:
        document = tiny_run(tmp_path) | {
            "notify": {"webhook": "env:OPS_HOOK", "events": ["source"]}
        }
        document["sources"] = {"news": {"prefix": str(crawl), "schedule": "1h"}}
        spec = RunSpec.model_validate(document)
        work = Workspace(spec, "run.yaml", [NotifyObserver(spec.notify)])
        sources = open_sources(work)
        for _ in range(times):
            pull_due(work, sources, NOON + timedelta(minutes=next(minutes)))
        work.close()
        return len(hook.taken)

    assert look(2) == 0, "it may pass by itself"
    assert look(2) == 1
    (text,) = _texts(hook)
    assert text.startswith("*tiny: source news is in trouble*\nthere is no folder")
    assert look(1) == 1, "another process knows that it was told"
    crawl.mkdir()
    (crawl / "a.txt").write_text("a")
    assert look(1) == 1
    shutil.rmtree(crawl)
    assert look(3) == 2, "it was well in between"


def test_a_look_that_can_do_nothing_is_told_once(tmp_path: Path, hook: Hook) -> None:
    with work_of(str(tmp_path / "store"), webhook="env:OPS_HOOK") as (work, _, _observer):
        work.store.write(work.ledger.key(work.ledger.next), b"{}")
        for _ in range(3):
            assert _look(work, reschedule=False).failure is not None
    (text,) = _texts(hook)
    assert text.startswith("*tiny: a look at the inbox failed; the next one tries again*")
