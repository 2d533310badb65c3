"""An S3 store that cannot be used ends `perennial run` in one line and exit code 2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.store import open_store
from tests.support.faulty_proxy import Road
from tests.support.s3_server import MotoServer, S3Server
from tests.support.tiny_run import tiny_run, write_run


def refusal(folder: Path, store: str) -> str:
    """The one line with which `perennial run` refuses the store."""
    run_file = write_run(folder, tiny_run(folder, store))
    done = CliRunner().invoke(app, ["run", str(run_file)])
    assert (done.exit_code, done.stdout) == (2, ""), (done.output, done.exception)
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"perennial: store: {store}: ")
    return lines[0]


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_refused_and_not_shown(
    s3_url: str,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    if s3_server.kind == "moto":
        pytest.skip("moto accepts any credentials")
    monkeypatch.setenv(name, "wrong-secret")
    line = refusal(tmp_path, s3_url)
    assert "the bucket may not be listed" in line
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in line
    assert "wrong-secret" not in line


def test_a_missing_bucket_is_refused(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3_server.use(monkeypatch)
    line = refusal(tmp_path, "s3://no-such-bucket/run")
    assert "bucket 'no-such-bucket' does not exist" in line


@pytest.fixture
def moto(tmp_path: Path) -> Iterator[MotoServer]:
    """A server that does not sign: what is stripped from a request is not missed."""
    server = MotoServer(tmp_path)
    yield server
    server.stop()


def test_I4_a_server_that_ignores_conditional_writes_is_refused(
    moto: MotoServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    moto.use(monkeypatch)
    url = f"s3://{moto.new_bucket()}/run"
    with Road(moto.port).open() as road:
        monkeypatch.setenv("AWS_ENDPOINT_URL", road.endpoint)
        open_store(url).check()  # the same road, as long as it carries the condition
        road.rewrite = lambda head: re.sub(rb"(?i)\r\nif-none-match: [^\r]*", b"", head)
        line = refusal(tmp_path, url)
        assert "the server ignores If-None-Match, so two writers could both win" in line
        assert open_store(url).list() == []
