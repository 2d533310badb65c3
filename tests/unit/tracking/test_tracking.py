"""Tracking without MLflow: the bounded outbox, places, names and secrets."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import botocore.exceptions
import pytest

from perennial.errors import InputError
from perennial.redaction import hide_in_file, hide_secrets, hide_values
from perennial.store import open_store
from perennial.tracking import default_uri, open_tracker, outbox, ui_command
from perennial.tracking.failures import explain
from perennial.tracking.outbox import Artifact, End, MetricPoint, Outbox, Pending, Receipt


def pending(box: Outbox, key: str = "quick/00-english") -> Pending:
    return box.add(Pending(key, key.rpartition("/")[2], None, {}, {}))


def points(first: int, last: int) -> list[MetricPoint]:
    return [MetricPoint("train/loss", 1.0, 0, step) for step in range(first, last + 1)]


@pytest.fixture
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.usefixtures("no_tracking_uri")
def test_a_local_store_has_its_own_database() -> None:
    assert default_uri(open_store("/data/run")) == "sqlite:////data/run/mlflow/mlflow.db"


@pytest.mark.usefixtures("no_tracking_uri")
def test_a_store_in_s3_asks_for_a_server() -> None:
    with pytest.raises(InputError, match=r"tracking\.uri.*MLFLOW_TRACKING_URI"):
        default_uri(open_store("s3://bucket/run"))


@pytest.mark.parametrize("store", ["/data/run", "s3://bucket/run"])
def test_the_environment_names_the_server(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert default_uri(open_store(store)) == "http://mlflow:5000"


def test_the_ui_serves_a_database_with_its_artifacts() -> None:
    command = ui_command("sqlite:////data/run/mlflow/mlflow.db", host="0.0.0.0", port=5001)
    assert command[:3] == [
        "env",
        "MLFLOW_DISABLE_TELEMETRY=true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false",
    ]
    assert command[3:7] == [sys.executable, "-m", "mlflow", "server"]
    options = dict(zip(command[7::2], command[8::2], strict=True))
    assert options == {
        "--backend-store-uri": "sqlite:////data/run/mlflow/mlflow.db",
        "--artifacts-destination": "/data/run/mlflow/artifacts",
        "--host": "0.0.0.0",
        "--port": "5001",
        "--workers": "1",
    }


def test_the_ui_is_not_started_over_a_server() -> None:
    with pytest.raises(InputError, match="open http://mlflow:5000"):
        ui_command("http://mlflow:5000")


@pytest.mark.parametrize("lineage", ["", "a/b", "it's", "-x", "a" * 201])
def test_a_lineage_that_cannot_be_looked_up_is_refused(lineage: str) -> None:
    with pytest.raises(InputError, match="cannot name a run"):
        open_tracker("http://127.0.0.1:9", "perennial", lineage)


def test_names_that_lead_out_of_a_run_or_a_query_are_refused() -> None:
    tracker = open_tracker("http://127.0.0.1:9", "perennial", "quick")
    for artifact in ("", "/etc/x", "../x", "a/../x", "a\\x"):
        with pytest.raises(ValueError, match="no artifact name"):
            tracker.parent_run().artifact(b"", artifact)
    for child in ("", "x' or '1", "/x"):
        with pytest.raises(InputError, match="cannot name a run"):
            tracker.child(child)
    tracker.close(0)


def test_a_child_that_is_asked_for_twice_is_the_same_run() -> None:
    box = Outbox()
    assert pending(box) is pending(box)


def test_an_empty_run_id_is_one_that_was_never_known() -> None:
    tracker = open_tracker("http://127.0.0.1:9", "perennial", "quick")
    run = tracker.child("00-english", run_id="")
    assert run.wait_id(timeout_seconds=0) is None
    tracker.close(0)


def test_values_over_the_bound_count_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "KEPT_POINTS", 5)
    box = Outbox()
    first, second = pending(box, "quick/a"), pending(box, "quick/b")
    box.put(first, points(0, 2))
    box.put(second, points(0, 9))
    assert [p.step for p in second.points] == [0, 1]
    box.done(first, box.batch(first))
    box.put(second, points(5, 6))
    assert [p.step for p in second.points] == [0, 1, 5, 6]
    assert box.abandon("it is down").missing == (
        "quick/a: the run itself",
        "quick/b: the run itself, 12 values of steps 0 to 9",
    )


def test_files_over_the_bound_count_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "KEPT_ARTIFACT_BYTES", 10)
    box = Outbox()
    run = pending(box)
    box.attach(run, "id", {})
    box.put(run, [Artifact("kept", b"x" * 10), Artifact("over", b"x")])
    box.done(run, [Artifact("kept", b"x" * 10)])
    assert box.abandon("it is full") == Receipt(
        runs=1, values=0, files=1, missing=("quick/00-english: artifact over",), reason="it is full"
    )


def test_an_end_that_came_while_another_was_sent_stays() -> None:
    box = Outbox()
    run = pending(box)
    box.attach(run, "id", {})
    sent, newer = End("FAILED", 1), End("FINISHED", 2)
    box.put(run, [sent])
    assert box.others(run) == [sent]
    box.put(run, [newer])
    box.done(run, [sent])
    assert box.others(run) == [newer]


def test_nothing_is_missing_when_all_was_delivered() -> None:
    box = Outbox()
    run = pending(box)
    box.attach(run, "id", {})
    box.put(run, [*points(0, 2), Artifact("a", b""), End("FINISHED", 1)])
    box.done(run, [*box.batch(run), *box.others(run)])
    box.close()
    assert not box.wait_for_work()
    assert box.abandon("why") == Receipt(runs=1, values=3, files=1, missing=(), reason="")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hunter2@mlflow:5000/a@b", "http://***@mlflow:5000/a@b"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("https://h/f?X-Amz-Signature=ab12&part=1", "https://h/f?X-Amz-Signature=***&part=1"),
        ("the key is s3cr3t-value.", "the key is ***."),
        ("short", "short"),
    ],
)
def test_secrets_are_hidden_in_text(text: str, shown: str) -> None:
    environment = {"HF_TOKEN": "s3cr3t-value", "API_KEY": "short", "HOME": "the key is"}
    assert hide_secrets(text, environment) == shown


def test_parameters_that_say_they_are_secret_are_hidden() -> None:
    values = {"db_password": "x", "s3.secret_key": "x", "end_of_document_token": 0, "tokens": 5}
    assert hide_values(values) == {
        "db_password": "***",
        "s3.secret_key": "***",
        "end_of_document_token": "0",
        "tokens": "5",
    }


def test_a_picture_is_left_as_it_is() -> None:
    picture = b"\x89PNG http://me:hunter2@host"
    assert hide_in_file(picture) == picture


def _sqlite_words(path: Path, statement: str) -> sqlite3.Error:
    """Return the error of SQLite for a statement on a file that may only be read."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        with pytest.raises(sqlite3.Error) as failed:
            database.execute(statement)
        return failed.value


def test_a_database_that_is_only_read_or_damaged_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    sqlite3.connect(path).close()
    failure = explain(_sqlite_words(path, "CREATE TABLE runs (name TEXT)"))
    assert (failure.problem, failure.lasting) == ("MLflow's database cannot be written", True)
    assert "attempt to write a readonly database" in str(failure)
    failure = explain(_sqlite_words(path, "SELECT * FROM metrics"))
    assert failure.broken
    path.write_text("name: tiny\n")
    failure = explain(_sqlite_words(path, "SELECT * FROM metrics"))
    assert failure.broken
    assert "perennial track" in failure.remedy


def test_an_artifact_store_that_refuses_is_told_in_its_words() -> None:
    refusal = botocore.exceptions.ClientError(
        {"Error": {"Code": "AccessDenied", "Message": "no right to this bucket"}}, "PutObject"
    )
    for error in (refusal, botocore.exceptions.NoCredentialsError(), PermissionError("no right")):
        failure = explain(error, "report.html")
        assert failure.problem == "MLflow's artifact store refuses files"
        assert failure.lasting
        assert str(error) in str(failure)
    assert not explain(ConnectionError("refused"), "report.html").lasting


def test_the_innermost_cause_is_told_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2-and-3")
    outer = RuntimeError("it failed")
    outer.__cause__ = ValueError("hunter2-and-3 is wrong")
    assert explain(outer).words == "RuntimeError: it failed (ValueError: *** is wrong)"
    assert explain(OSError(28, "No space left on device")).problem == (
        "there is no space left for MLflow"
    )
