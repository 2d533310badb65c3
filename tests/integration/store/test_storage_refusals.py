"""Storage that is full or refuses: its own words, the remedy for its code, and nothing damaged."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from perennial.causes import storage_error
from perennial.cli.app import app
from perennial.errors import InputError, PerennialError, StorageFull
from perennial.store import LocalStore, open_store
from perennial.store.keys import is_pending
from tests.support.google_server import GoogleServer
from tests.support.small_disk import fill, remount, small_disk
from tests.support.tiny_run import tiny_run, write_run


class _Refusing(BaseHTTPRequestHandler):
    """An S3 server that answers every request with one error, as AWS and Ceph word it."""

    protocol_version = "HTTP/1.1"
    answer: ClassVar[tuple[int, str, str]]

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, code, message = self.answer
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _refuse

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


SKEW = "The difference between the request time and the current time is too large."
KMS = "User: arn:aws:iam::1:user/u is not authorized to perform: kms:GenerateDataKey"
ANSWERS = [
    ((403, "RequestTimeTooSkewed", SKEW), "store-credentials", "clock"),
    ((403, "AccessDenied", KMS), "store-credentials", "kms:GenerateDataKey and kms:Decrypt"),
    ((400, "KMS.DisabledException", "The key is disabled."), "store-unreachable", "bucket's key"),
    ((400, "ExpiredToken", "The provided token has expired."), "store-credentials", "sso login"),
    (
        (400, "AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'eu-west-1'"),
        "store-unreachable",
        "AWS_DEFAULT_REGION",
    ),
    ((404, "NoSuchBucket", "The specified bucket does not exist"), "bucket-missing", "make the"),
    ((403, "AccessDenied", "Access Denied"), "store-credentials", "right to list"),
    ((403, "QuotaExceeded", "Unknown"), "storage-full", "quota"),
    ((507, "XMinioStorageFull", "Storage backend is full."), "storage-full", "free room"),
    ((400, "OddCode", "Words of the server."), "store-unreachable", "AWS_ENDPOINT_URL"),
]


@pytest.mark.parametrize(("answer", "code", "remedy"), ANSWERS, ids=lambda value: str(value)[:40])
def test_what_an_s3_server_refuses_is_in_its_words_with_the_remedy_for_its_code(
    refusing: str,
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[int, str, str],
    code: str,
    remedy: str,
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": refusing,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-ours",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_Refusing, "answer", answer, raising=False)
    store = open_store("s3://bucket/run")
    with pytest.raises(PerennialError) as caught:
        store.check()
    assert caught.value.code == code
    _says(str(caught.value), answer, remedy)
    if code not in ("bucket-missing",) and "OddCode" not in answer:
        for use in (lambda: store.write("a", b"x"), lambda: store.read("a"), lambda: store.list()):
            with pytest.raises(OSError) as refused:
                use()
            assert refused.value.filename or code == "store-unreachable"
            _says(str(storage_error(refused.value)), answer, remedy)


def _says(line: str, answer: tuple[int, str, str], remedy: str) -> None:
    assert "\n" not in line
    assert f"{answer[1]}: {answer[2]}" in line
    assert remedy in line
    assert "a-secret-of-ours" not in line


@pytest.mark.parametrize(
    ("status", "words", "remedy"),
    [
        (403, "The billing account for the owning project is disabled", "billing account"),
        (403, "Permission denied on Cloud KMS key cryptoKeyVersions/1", "CryptoKey"),
        (429, "rateLimitExceeded: too many requests", "less busy"),
        (401, "run@project lacks storage.objects.list", "GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_what_google_refuses_is_in_its_words_with_the_remedy(
    gs_url: str,
    google_server: GoogleServer,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    words: str,
    remedy: str,
) -> None:
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", _at_once)
    google_server.refusal = (status, words)
    try:
        with pytest.raises(InputError) as caught:
            open_store(gs_url).check()
    finally:
        google_server.refusal = None
    assert words in str(caught.value)
    assert remedy in str(caught.value)


async def _at_once(_seconds: float) -> None:
    pass


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 256) as folder:
        yield folder


def test_a_full_disk_damages_nothing_and_goes_on_when_there_is_room(disk: Path) -> None:
    store = LocalStore(str(disk / "store"))
    store.write("a", b"before")
    assert store.create("ledger/0", b"first")
    ballast = fill(disk)
    content = b"x" * 100_000
    operations = (
        lambda: store.write("a", content),
        lambda: store.create("ledger/1", content),
        lambda: store.upload(ballast, "b"),
    )
    for operation in operations:
        with pytest.raises(OSError) as caught:
            operation()
        assert caught.value.errno == errno.ENOSPC
        assert str(disk / "store") in str(caught.value)
    assert [info.key for info in store.list()] == ["a", "ledger/0"]
    assert store.read("a") == b"before"
    left = [name for _, _, names in os.walk(disk) for name in names if is_pending(name)]
    assert left == []
    with pytest.raises(StorageFull, match=r"No space left on device; free room"):
        store.check()
    ballast.unlink()
    store.check()
    store.write("a", content)
    assert store.create("ledger/1", content)


def test_a_command_on_a_full_disk_is_one_line_and_goes_on_when_there_is_room(
    disk: Path, tmp_path: Path
) -> None:
    run_file = str(write_run(tmp_path, tiny_run(tmp_path, str(disk / "store"))))
    text = str(tmp_path / "numbers.txt")
    Path(text).write_text("\n\n".join(f"{number} is a number" for number in range(20_000)))
    ballast = fill(disk)
    ended = CliRunner().invoke(app, ["land", run_file, "help", text, "--json"])
    assert ended.exit_code == 1
    assert '"code": "storage-full"' in ended.stdout
    (line,) = ended.stderr.splitlines()
    assert line.startswith("perennial: ")
    assert "No space left on device" in line
    assert "free room" in line
    ballast.write_bytes(b"")  # room for a part of it
    ended = CliRunner().invoke(app, ["land", run_file, "help", text])
    assert (ended.exit_code, len(ended.stderr.splitlines())) == (1, 1)
    remount(disk, "size=8m")
    assert CliRunner().invoke(app, ["land", run_file, "help", text]).exit_code == 0


def test_a_read_only_file_system_is_told_as_one(disk: Path) -> None:
    store = LocalStore(str(disk / "store"))
    store.write("a", b"before")
    remount(disk, "ro")
    with pytest.raises(InputError, match=r"Read-only file system.*mount that file system writable"):
        store.check()
    assert store.read("a") == b"before"


def test_too_many_open_files_are_told_as_such(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_free = os.open(tmp_path, os.O_RDONLY)
    os.close(next_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, limits[1]))
    try:
        with pytest.raises(InputError) as caught:
            store.check()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "Too many open files" in str(caught.value)
    assert "ulimit -n" in str(caught.value)
