"""What a run reaches for: its store, addresses, secrets, MLflow and a cluster."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.config import RunSpec
from perennial.config.training import TrainingSpec
from perennial.controller.context import Workspace
from perennial.diagnosis.examine import examine
from perennial.diagnosis.places import (
    examine_address,
    examine_secrets,
    examine_store,
    examine_tracking,
    judge_clock,
    judge_cluster,
    list_addresses,
)
from tests.support.tiny_run import tiny_run, write_run


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 500)
        self.end_headers()
        self.wfile.write(b"OK")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that says that it is healthy."""
    monkeypatch.setenv("no_proxy", "*")
    with HTTPServer(("127.0.0.1", 0), _Healthy) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address where nothing listens."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_addresses_are_named_once_and_without_what_is_secret() -> None:
    document = {
        "a": "https://user:secret@feed.example.org/x?token=1",
        "b": ["http://localhost:5000/", {"c": "https://feed.example.org/other"}],
        "d": "hf://owner/data",
        "bad": "http://feed.example.org:port/x",
        "e": ["s3://bucket/x", 5, None, "https://", "plain"],
    }
    assert list_addresses(document) == [
        "https://feed.example.org", "http://localhost:5000", "https://huggingface.co",
        "http://feed.example.org",
    ]  # fmt: skip


def test_an_address_answers_or_does_not(server: str, nowhere: str) -> None:
    assert examine_address(server).verdict == "ok"
    refused = examine_address(nowhere)
    assert (refused.verdict, refused.subject) == ("wrong", nowhere)
    assert "cannot be reached" in refused.state


def test_mlflow_is_a_server_that_is_healthy_or_a_database(server: str, nowhere: str) -> None:
    assert examine_tracking(server).verdict == "ok"
    assert examine_tracking(f"{server}/other").verdict == "notice"
    assert examine_tracking(nowhere).verdict == "notice"
    assert examine_tracking("sqlite:////x/mlflow.db").verdict == "ok"


def test_a_secret_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "secret"
    there.write_text("x")
    monkeypatch.setenv("THERE", "x")
    monkeypatch.delenv("GONE", raising=False)
    document = ["env:THERE", "env:GONE", f"file:{there}", f"file:{there}-gone", "file: a word"]
    assert [its.subject for its in examine_secrets(document)] == ["env:GONE", f"file:{there}-gone"]


@pytest.mark.parametrize(("skew", "verdict"), [(0.2, "ok"), (-59, "ok"), (61, "wrong")])
def test_a_clock_of_another_time_is_wrong(skew: float, verdict: str) -> None:
    assert judge_clock(skew).verdict == verdict


def test_a_cluster_is_compared_with_the_smallest_group() -> None:
    training = TrainingSpec.model_validate(
        {"global_batch": 8, "micro_batch": 4, "workers": 4, "gpus_per_worker": 1}
    )
    found = list(judge_cluster("ray:6379", {"CPU": 64.0, "GPU": 2.0}, 2, training))
    assert [its.verdict for its in found] == ["ok", "notice"]
    assert "4 workers need 4 GPUs, and it has 2 now" in found[1].state


def test_a_store_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    spec = RunSpec.model_validate(tiny_run(tmp_path))
    found = list(examine_store(Workspace(spec, "run.yaml")))
    assert {its.verdict for its in found} == {"ok"}
    assert [its.subject for its in found][:3] == [spec.store, "clock of the storage", "ledger"]
    assert not [path for path in Path(spec.store).rglob("*") if path.is_file()]


def test_the_verb_says_everything_and_ends_with_1_where_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    document = tiny_run(tmp_path)
    (tmp_path / "file").write_text("")
    document["store"] = str(tmp_path / "file" / "store")
    run_file = write_run(tmp_path, document)
    done = CliRunner().invoke(app, ["doctor", str(run_file), "--json"])
    assert done.exit_code == 1, done.output
    told = json.loads(done.stdout)
    assert told["sound"] is False
    areas = {its["area"] for its in told["diagnoses"]}
    assert {"machine", "GPU", "cluster", "store"} <= areas
    assert next(its for its in told["diagnoses"] if its["area"] == "store")["verdict"] == "wrong"
    run_file.write_text("model: 5\nstore: [")
    lines = CliRunner().invoke(app, ["doctor", str(run_file)]).stdout
    assert "wrong   run file" in lines
    assert f"next      perennial doctor {run_file}" in lines


def test_a_server_that_is_none_of_the_web_is_no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 12)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        found = examine_tracking(f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()
    assert found.verdict == "notice"


def test_a_run_that_mlflow_does_not_keep_lacks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    document = tiny_run(tmp_path) | {"tracking": {"to": ["tensorboard"]}}
    spec = RunSpec.model_validate(document)
    found = [its for its in examine(spec, "run.yaml") if its.area == "network"]
    assert found == []
