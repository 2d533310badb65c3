"""`check` accepts what can be used, and says in one line what cannot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from perennial.errors import InputError
from perennial.store import open_store
from tests.support.s3_server import CephServer, S3Server


def refusal(url: str) -> str:
    """The one line with which `check` refuses the store."""
    with pytest.raises(InputError) as caught:
        open_store(url).check()
    assert (caught.value.where, caught.value.field) == ("store", url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_I8_a_usable_store_passes_and_keeps_no_trace_of_it(
    store_url: str, tmp_path: Path, s3_server: S3Server
) -> None:
    store = open_store(store_url)
    store.check()
    assert store.list() == []
    assert list(tmp_path.iterdir()) == []
    store.write("a", b"x")
    store.check()
    assert [info.key for info in store.list()] == ["a"]


def test_I8_many_controllers_may_check_one_new_store_at_once(store_url: str) -> None:
    def check_and_claim(number: int) -> bool:
        open_store(store_url).check()
        return open_store(store_url).create("claim", b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(check_and_claim, range(16))) == 1


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "is not a folder" in refusal(str(tmp_path / "file" / "store"))
    assert "is not a folder" in refusal(str(tmp_path / "file"))


def test_a_folder_that_refuses_new_files_is_refused() -> None:
    # Not even root may make a file in /proc.
    assert "cannot be written" in refusal("/proc/store")


def test_a_missing_bucket_is_refused(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_server.use(monkeypatch)
    assert "bucket 'no-such-bucket' does not exist" in refusal("s3://no-such-bucket/a")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"),
    ],
)
def test_wrong_credentials_are_refused_and_not_shown(
    s3_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, name: str, code: str
) -> None:
    if s3_server.kind == "moto":
        pytest.skip("moto accepts any credentials")
    monkeypatch.setenv(name, "wrong-secret")
    line = refusal(s3_url)
    assert f"the bucket may not be listed ({code}" in line
    assert "wrong-secret" not in line
    assert s3_server.secret_key not in line


def test_no_credentials_at_all_are_refused(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "Unable to locate credentials" in refusal(s3_url)


def test_credentials_that_may_only_read_are_refused(
    s3_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(s3_server, CephServer):
        pytest.skip("moto accepts any credentials")
    s3_server.add_user("reader", "reader", "reader-secret", "--op-mask=read")
    bucket = s3_url.split("/")[2]
    grant = {"ID": "reader", "Type": "CanonicalUser"}
    client = s3_server.client()
    owner = client.get_bucket_acl(Bucket=bucket)["Owner"]
    client.put_bucket_acl(
        Bucket=bucket,
        AccessControlPolicy={
            "Owner": owner,
            "Grants": [{"Grantee": grant, "Permission": "FULL_CONTROL"}],
        },
    )
    client.close()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "reader-secret")
    assert "cannot be written (AccessDenied" in refusal(s3_url)


def test_a_server_that_does_not_answer_is_refused(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    line = refusal(s3_url)
    assert "cannot be reached" in line
    assert "AWS_ENDPOINT_URL" in line


class _Forgetful(BaseHTTPRequestHandler):
    """An S3 server that overwrites whatever the condition says, as some do."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, str]] = {}

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.objects[self.path] = self.headers["x-amz-meta-writer"]
        self._answer(200)

    def do_GET(self) -> None:
        self._answer(200, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self._answer(204)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_ignores_conditional_writes_is_refused(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _serving(_Forgetful) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert "ignores If-None-Match" in refusal(s3_url)
    assert _Forgetful.objects == {}


def test_a_file_system_without_exclusive_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwriting(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes())

    def failing(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    cases: list[tuple[Callable[[Path, Path], None], str]] = [
        (overwriting, "two writers"),
        (failing, "hard links"),
    ]
    for link, said in cases:
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", link)
            assert said in refusal(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
