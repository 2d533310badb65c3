"""Tracking as a team has it: an MLflow server on PostgreSQL, looked at in a browser."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perennial.tracking import open_tracker
from tests.support.browser import CHROMIUM, look_at_lineage
from tests.support.mlflow_server import PATIENCE_SECONDS, MlflowServer, until
from tests.support.postgres_server import Postgres, has_postgres

EXPERIMENT = "team"
LINEAGE = "quickstart"
TOKENS_PER_STEP = 4096


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    """On PostgreSQL where it is there, on SQLite otherwise."""
    folder = tmp_path_factory.mktemp("mlflow")
    database = f"sqlite:///{folder}/mlflow.db"
    if has_postgres():
        database = request.getfixturevalue("postgres").uri
    server = MlflowServer(folder, database)
    server.start()
    yield server
    server.kill()


def rows(first: int, last: int) -> list[tuple[int, int, dict[str, float]]]:
    return [
        (step, 1_700_000_000_000 + step, {"train/loss": 9.0 / step, "train/eta": 1e-3})
        for step in range(first, last + 1)
    ]


def client(server: MlflowServer) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(server.uri)


def test_a_stage_is_one_run_through_the_death_of_everything(
    server: MlflowServer, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """The trainer, then the server, then its database are killed while the stage trains."""
    first = open_tracker(server.uri, EXPERIMENT, LINEAGE)
    stage = first.child("00-english", params={"replay": 0.05})
    stage.log_rows(rows(1, 40), TOKENS_PER_STEP)
    run_id = stage.wait_id(PATIENCE_SECONDS)
    until(lambda: bool(client(server).get_metric_history(run_id, "train/loss")), "rows arrive")
    # The trainer is killed: its tracker is never closed. The next one goes back to a checkpoint.
    second = open_tracker(server.uri, EXPERIMENT, LINEAGE)
    stage = second.child("00-english", run_id=run_id, params={"replay": 0.05})
    stage.log_rows(rows(30, 60), TOKENS_PER_STEP)
    server.kill()
    postgres.kill()
    stage.log_rows(rows(61, 80), TOKENS_PER_STEP)
    # A resize while all is down, and a stage that begins.
    stage = second.child("00-english", run_id=run_id)
    stage.log_rows(rows(71, 100), TOKENS_PER_STEP)
    stage.finish()
    french = second.child("01-french")
    french.log_rows(rows(101, 140), TOKENS_PER_STEP)
    until(lambda: "does not answer" in caplog.text, "the outage is noticed")
    postgres.start()
    server.start()
    french.finish()
    for index, state in enumerate(("training 01-french", "waiting")):
        second.parent_run().tag("perennial.state", state)
        gauges = {"queue/length": 1.0 - index, "queue/data_lag_seconds": 60.0}
        second.parent_run().log(index, gauges)
    second.parent_run().log(140, {"heldout/english": 4.9, "heldout/french": 3.2}, TOKENS_PER_STEP)
    second.close(PATIENCE_SECONDS)
    first.close(PATIENCE_SECONDS)

    mlflow = client(server)
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    found = {run.info.run_name: run for run in mlflow.search_runs([experiment.experiment_id])}
    assert len(mlflow.search_runs([experiment.experiment_id])) == len(found) == 3
    assert found["00-english"].info.run_id == run_id
    assert {found[name].info.status for name in ("00-english", "01-french")} == {"FINISHED"}
    steps = [point.step for point in mlflow.get_metric_history(run_id, "train/loss")]
    assert steps == list(range(1, 101))
    by_tokens = mlflow.get_metric_history(run_id, "versus_tokens/train/loss")
    assert [point.step for point in by_tokens] == [TOKENS_PER_STEP * step for step in steps]
    assert postgres.password not in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (make test-services)")
def test_a_browser_finds_the_lineage_and_its_charts(server: MlflowServer, tmp_path: Path) -> None:
    tracker = open_tracker(server.uri, "seen", LINEAGE)
    stages = ("00-english", "01-french")
    for index, name in enumerate(stages):
        stage = tracker.child(name)
        stage.log_rows(rows(1 + 100 * index, 100 + 100 * index), TOKENS_PER_STEP)
        stage.finish()
    tracker.close(PATIENCE_SECONDS)
    experiment = client(server).get_experiment_by_name("seen").experiment_id
    picture = tmp_path / "lineage.png"
    look_at_lineage(server.uri, experiment, LINEAGE, stages, picture)
    assert picture.stat().st_size > 20_000
