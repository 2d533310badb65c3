"""Tracking against a real SQLite store and a real MLflow server."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perennial.store import open_store
from perennial.tracking import Tracker, default_uri, open_tracker, page_of_lineage
from tests.support.mlflow_server import PATIENCE_SECONDS, MlflowServer, until

ROOT = Path(__file__).parents[3]
EXPERIMENT = "perennial"
Rows = list[tuple[int, int, dict[str, float]]]


def rows_of(steps: range, start_ms: int = 1_700_000_000_000) -> Rows:
    return [(step, start_ms + step, {"train/loss": 1.0 / (step + 1)}) for step in steps]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    server = MlflowServer(folder, f"sqlite:///{folder}/mlflow.db")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tracking URI of an SQLite file that is there already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        uri = default_uri(open_store(tmp_path_factory.mktemp("store")))
    deliver(open_tracker(uri, EXPERIMENT, "first"))
    return uri


def deliver(tracker: Tracker) -> None:
    tracker.close(PATIENCE_SECONDS)


def client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def runs_of(uri: str, lineage: str) -> list[Any]:
    mlflow = client(uri)
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    wanted = f"tags.`perennial.lineage` = '{lineage}'"
    return list(mlflow.search_runs([experiment.experiment_id], wanted))


def history(uri: str, run_id: str | None, name: str = "train/loss") -> list[tuple[int, float]]:
    found = client(uri).get_metric_history(run_id, name)
    return [(metric.step, metric.value) for metric in found]


def expected(steps: range) -> list[tuple[int, float]]:
    return [(step, 1.0 / (step + 1)) for step in steps]


def test_a_lineage_is_a_parent_run_with_a_child_run_a_stage(sqlite: str) -> None:
    tracker = open_tracker(sqlite, EXPERIMENT, "tree")
    stage = tracker.child(
        "01-french", params={"replay.share": 0.05}, tags={"perennial.kind": "stage"}
    )
    trial = tracker.child("release/01-french@00000120")
    stage.log(7, {"train/loss": 2.5, "tokens": 4096.0})
    stage.artifact(b'{"a": 1}', "matrix/loss.json")
    stage.finish()
    trial.finish("FAILED")
    tracker.parent_run().log(0, {"heldout/french": 3.0})
    deliver(tracker)

    found = {run.info.run_id: run for run in runs_of(sqlite, "tree")}
    assert set(found) == {tracker.lineage_run_id, stage.id, trial.id}
    child = found[str(stage.id)]
    assert child.data.tags["mlflow.parentRunId"] == tracker.lineage_run_id
    assert child.data.tags["perennial.kind"] == "stage"
    assert child.info.run_name == "01-french"
    assert child.data.params == {"replay.share": "0.05"}
    assert child.data.metrics == {"train/loss": 2.5, "tokens": 4096.0}
    assert child.info.status == "FINISHED"
    assert found[str(trial.id)].info.status == "FAILED"
    parent = found[str(tracker.lineage_run_id)]
    assert "mlflow.parentRunId" not in parent.data.tags
    assert parent.data.metrics == {"heldout/french": 3.0}
    root = Path(sqlite.removeprefix("sqlite:///")).parent / "artifacts"
    assert [path.read_bytes() for path in root.rglob("matrix/loss.json")] == [b'{"a": 1}']


def test_the_lineages_own_run_has_parameters_a_description_and_an_end(sqlite: str) -> None:
    def status() -> str:
        (run,) = [r for r in runs_of(sqlite, "ends") if r.info.run_name == "ends"]
        return str(run.info.status)

    first = open_tracker(sqlite, EXPERIMENT, "ends", params={"seed": 1, "model.layers": 4})
    first.parent_run().describe("02-spanish learned **2.7** nats")
    deliver(first)
    run = client(sqlite).get_run(first.lineage_run_id)
    assert run.data.params == {"seed": "1", "model.layers": "4"}
    assert run.data.tags["mlflow.note.content"] == "02-spanish learned **2.7** nats"
    assert status() == "RUNNING"
    second = open_tracker(sqlite, EXPERIMENT, "ends")
    second.parent_run().finish()
    deliver(second)
    assert status() == "FINISHED"
    deliver(open_tracker(sqlite, EXPERIMENT, "ends"))
    assert status() == "FINISHED", "a look does not have it running again"
    third = open_tracker(sqlite, EXPERIMENT, "ends")
    third.parent_run().resume()
    deliver(third)
    assert status() == "RUNNING"


def test_the_page_of_a_lineage_is_that_of_its_own_run(sqlite: str) -> None:
    assert page_of_lineage(sqlite, EXPERIMENT, "paged", store="", owned=False) == ""
    tracker = open_tracker(sqlite, EXPERIMENT, "paged")
    tracker.child("00-english")
    deliver(tracker)
    experiment = client(sqlite).get_experiment_by_name(EXPERIMENT).experiment_id
    page = page_of_lineage(sqlite, EXPERIMENT, "paged", store="", owned=False)
    assert page == f"#/experiments/{experiment}/runs/{tracker.lineage_run_id}"


@pytest.mark.long
def test_a_release_of_a_local_store_is_downloaded_by_its_alias(tmp_path: Path) -> None:
    store = tmp_path / "store"
    release = store / "releases" / "v1"
    release.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (release / name).write_bytes(name.encode())
    uri = f"sqlite:///{store}/mlflow/mlflow.db"
    tracker = open_tracker(uri, EXPERIMENT, "tiny", owned=True)
    tracker.child("release-v1").register("tiny", "v1", "releases/v1")
    deliver(tracker)
    (linked,) = (store / "mlflow").rglob("model.safetensors")
    assert linked.samefile(release / "model.safetensors")
    shutil.rmtree(linked.parent)
    linked.parent.symlink_to(release, target_is_directory=True)  # as earlier versions made it
    again = open_tracker(uri, EXPERIMENT, "tiny", owned=True)
    again.child("release-v1").register("tiny", "v1", "releases/v1")
    deliver(again)
    moved = store.rename(tmp_path / "moved")
    server = MlflowServer(moved / "mlflow", f"sqlite:///{moved}/mlflow/mlflow.db")
    server.start()
    try:
        shown = (ROOT / "docs/guide/tracking.md").read_text(encoding="utf-8")
        code = re.search(r"```python\n(import mlflow\n.*?)```", shown, re.DOTALL)
        assert code is not None
        code_here = (
            code[1].replace("http://127.0.0.1:5000", server.uri).replace("quickstart", "tiny")
        )
        subprocess.run([sys.executable, "-c", code_here], cwd=tmp_path, check=True)
    finally:
        server.kill()
    assert {path.name: path.read_text() for path in Path(tmp_path, "model").iterdir()} == {
        "config.json": "config.json",
        "model.safetensors": "model.safetensors",
    }


@pytest.mark.parametrize("keeps_id", [True, False], ids=["by its id", "by its name"])
def test_a_reopened_lineage_continues_its_runs(sqlite: str, keeps_id: bool) -> None:
    lineage = f"reopened-{keeps_id}"
    first = open_tracker(sqlite, EXPERIMENT, lineage)
    stage = first.child("00-english", params={"seed": 1})
    stage.finish("KILLED")
    deliver(first)

    second = open_tracker(sqlite, EXPERIMENT, lineage)
    again = second.child(
        "00-english", run_id=stage.id if keeps_id else None, params={"seed": 2, "workers": 3}
    )
    again.log_rows(rows_of(range(3)))
    deliver(second)

    assert (second.lineage_run_id, again.id) == (first.lineage_run_id, stage.id)
    assert len(runs_of(sqlite, lineage)) == 2
    run = client(sqlite).get_run(stage.id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"seed": "1", "workers": "3"}


def test_a_run_id_counts_more_than_a_name(sqlite: str) -> None:
    first = open_tracker(sqlite, EXPERIMENT, "renamed")
    stage = first.child("00-english")
    deliver(first)
    second = open_tracker(sqlite, EXPERIMENT, "renamed")
    again = second.child("00-british", run_id=stage.id)
    deliver(second)
    assert again.id == stage.id
    assert len(runs_of(sqlite, "renamed")) == 2


def test_a_run_id_of_another_lineage_is_left_to_it(sqlite: str) -> None:
    """As a fork's first stages have it."""
    first = open_tracker(sqlite, EXPERIMENT, "forked")
    run_id = first.child("00-help").wait_id(PATIENCE_SECONDS)
    deliver(first)
    fork = open_tracker(sqlite, EXPERIMENT, "fork")
    mine = fork.child("00-help", run_id=run_id)
    mine.log(1, {"train/loss": 1.0})
    deliver(fork)
    assert mine.id != run_id
    assert history(sqlite, run_id) == []
    assert history(sqlite, mine.id) == [(1, 1.0)]


def test_stores_of_one_name_share_neither_runs_nor_versions(sqlite: str) -> None:
    """Not by a name, and not by a run id that a copied ledger or a fork brought."""
    runs: list[tuple[str | None, ...]] = []
    for number, store in enumerate(("a" * 32, "b" * 32, "a" * 32)):
        tracker = open_tracker(sqlite, EXPERIMENT, "twins", store=store)
        stage = tracker.child("00-english", run_id=runs[0][1] if runs else None)
        stage.log(number + 1, {"train/loss": float(number)})
        release = tracker.child("release-v1")
        release.register("twins", "v1", f"/data/{store[0]}/releases/v1")
        deliver(tracker)
        runs.append((tracker.lineage_run_id, stage.id, release.id))
        page = page_of_lineage(sqlite, EXPERIMENT, "twins", store=store, owned=False)
        assert page.endswith(f"/runs/{tracker.lineage_run_id}")
    first, second, again = runs
    assert again == first
    assert not set(first) & set(second)
    assert history(sqlite, first[1]) == [(1, 0.0), (3, 2.0)]
    assert history(sqlite, second[1]) == [(2, 1.0)]
    versions = client(sqlite).search_model_versions("name = 'twins'")
    made_by = {version.run_id: version.tags["perennial.store"] for version in versions}
    assert made_by == {first[2]: "a" * 32, second[2]: "b" * 32}


def test_runs_of_an_earlier_version_are_those_of_the_store_that_finds_them(sqlite: str) -> None:
    """Runs and versions once named no store."""
    ids = []
    for store in ("", "a" * 32, "b" * 32):
        tracker = open_tracker(sqlite, EXPERIMENT, "older", store=store)
        release = tracker.child("release-v1")
        release.register("older", "v1", f"/data/{store[:1]}/releases/v1")
        deliver(tracker)
        ids.append((tracker.lineage_run_id, release.id))
    assert ids[1] == ids[0]
    assert not set(ids[2]) & set(ids[0])
    assert client(sqlite).get_run(str(ids[0][0])).data.tags["perennial.store"] == "a" * 32
    versions = client(sqlite).search_model_versions("name = 'older'")
    assert {version.run_id for version in versions} == {ids[0][1], ids[2][1]}
    assert len(versions) == 2


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "never there"])
def test_a_run_id_that_mlflow_does_not_have_gives_a_new_run(sqlite: str, deleted: bool) -> None:
    tracker = open_tracker(sqlite, EXPERIMENT, f"moved-{deleted}")
    lost_id = "0" * 32
    if deleted:
        lost_id = str(tracker.child("old").wait_id(PATIENCE_SECONDS))
        client(sqlite).delete_run(lost_id)
    stage = tracker.child("00-english", run_id=lost_id)
    assert stage.id == lost_id
    deliver(tracker)
    ids = {run.info.run_id for run in runs_of(sqlite, f"moved-{deleted}")}
    assert ids == {tracker.lineage_run_id, stage.id}
    assert stage.id != lost_id


def test_trackers_that_open_a_lineage_at_once_share_its_runs(sqlite: str) -> None:
    trackers = [open_tracker(sqlite, EXPERIMENT, "at-once") for _ in range(4)]
    stages = [tracker.child("00-english") for tracker in trackers]
    for tracker in trackers:
        deliver(tracker)
    assert len({tracker.lineage_run_id for tracker in trackers}) == 1
    assert len({stage.id for stage in stages}) == 1
    assert len(runs_of(sqlite, "at-once")) == 2


def test_a_run_whose_creator_died_before_keeping_it_is_replaced(
    sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perennial.tracking import mlflow_runs

    monkeypatch.setattr(mlflow_runs, "STALE_SECONDS", 0.1)
    mlflow = client(sqlite)
    experiment = mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
    tags = {"perennial.run": "unsettled", "perennial.lineage": "unsettled"}
    left = mlflow.create_run(experiment, tags=tags).info.run_id
    tracker = open_tracker(sqlite, EXPERIMENT, "unsettled")
    deliver(tracker)
    assert [run.info.run_id for run in runs_of(sqlite, "unsettled")] == [tracker.lineage_run_id]
    assert tracker.lineage_run_id != left


def test_rows_given_again_after_a_restart_arrive_once_and_in_order(sqlite: str) -> None:
    first = open_tracker(sqlite, EXPERIMENT, "again")
    stage = first.child("00-english")
    stage.log_rows(rows_of(range(12)))
    # A worker group that went back to step 8 and trains it again, later.
    stage.log_rows(rows_of(range(8, 15), start_ms=1_700_000_999_000))
    deliver(first)

    second = open_tracker(sqlite, EXPERIMENT, "again")
    stage = second.child("00-english", run_id=stage.id)
    for step, _, values in rows_of(range(10, 20)):
        stage.log(step, values)
    stage.log(9, {"heldout/french": 4.0})  # another metric has steps of its own
    deliver(second)

    assert history(sqlite, stage.id) == expected(range(20))
    assert history(sqlite, stage.id, "heldout/french") == [(9, 4.0)]


def test_values_are_drawn_over_steps_and_over_tokens_through_a_restart(sqlite: str) -> None:
    first = open_tracker(sqlite, EXPERIMENT, "tokens")
    first.child("00-english").log_rows(rows_of(range(12)), tokens_per_step=4096)
    deliver(first)
    second = open_tracker(sqlite, EXPERIMENT, "tokens")
    stage = second.child("00-english")
    stage.log_rows(rows_of(range(8, 20)), tokens_per_step=4096)
    deliver(second)
    assert history(sqlite, stage.id) == expected(range(20))
    by_tokens = history(sqlite, stage.id, "versus_tokens/train/loss")
    assert by_tokens == [(4096 * step, value) for step, value in expected(range(20))]


def test_tokens_are_those_that_were_seen_where_an_earlier_stage_had_another_batch(
    sqlite: str,
) -> None:
    tracker = open_tracker(sqlite, EXPERIMENT, "batches")
    stage = tracker.child("01-french")
    for step in (101, 102):  # behind 100 steps of 1,024 tokens
        seen = {"train/loss": 2.0, "train/tokens_seen": float(102_400 + 4096 * (step - 100))}
        stage.log(step, seen, tokens_per_step=4096)
    deliver(tracker)
    by_tokens = history(sqlite, stage.id, "versus_tokens/train/loss")
    assert [tokens for tokens, _ in by_tokens] == [106_496, 110_592]


def test_a_tag_tells_the_latest(sqlite: str) -> None:
    tracker = open_tracker(sqlite, EXPERIMENT, "tags")
    for state in ("ingesting", "training 00-english"):
        tracker.parent_run().tag("perennial.state", state)
    deliver(tracker)
    again = open_tracker(sqlite, EXPERIMENT, "tags")
    again.parent_run().tag("perennial.state", "waiting")
    deliver(again)
    run = client(sqlite).get_run(tracker.lineage_run_id)
    assert run.data.tags["perennial.state"] == "waiting"


def test_the_id_can_be_waited_for_and_is_none_before(sqlite: str) -> None:
    tracker = open_tracker(sqlite, EXPERIMENT, "waited")
    stage = tracker.child("00-english")
    run_id = stage.wait_id(PATIENCE_SECONDS)
    assert run_id == stage.id == client(sqlite).get_run(run_id).info.run_id
    deliver(tracker)
    unreachable = open_tracker("http://127.0.0.1:9", EXPERIMENT, "waited")
    assert unreachable.child("00-english").wait_id(0.01) is None
    unreachable.close(0.01)


def test_secrets_are_hidden(sqlite: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    spec = tmp_path / "spec.yaml"
    spec.write_text("key: wJalrXUtnFEMI\nuri: http://me:hunter2@mlflow:5000\n")
    tracker = open_tracker(sqlite, EXPERIMENT, "secrets")
    stage = tracker.child("00-english", params={"uri": "http://me:hunter2@mlflow:5000"})
    stage.artifact(spec, "spec.yaml")
    deliver(tracker)
    mlflow = client(sqlite)
    assert mlflow.get_run(stage.id).data.params == {"uri": "http://***@mlflow:5000"}
    beside = Path(sqlite.removeprefix("sqlite:///")).parent / "artifacts"
    shown = beside / str(stage.id) / "artifacts" / "spec.yaml"
    assert shown.read_text() == "key: ***\nuri: http://***@mlflow:5000\n"


def test_what_a_run_lost_is_named_and_other_runs_go_on(
    sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker(sqlite, EXPERIMENT, "deleted")
    gone, stays = tracker.child("00-english"), tracker.child("01-french")
    mlflow = client(sqlite)
    mlflow.delete_run(gone.wait_id(PATIENCE_SECONDS))
    gone.log_rows(rows_of(range(5, 8)))
    stays.log_rows(rows_of(range(3)))
    deliver(tracker)
    assert history(sqlite, stays.id) == expected(range(3))
    refusal, ending = [record.getMessage() for record in caplog.records]
    assert "MLflow refuses a part of deleted/00-english" in refusal
    assert "deleted/00-english: 3 values of steps 5 to 7" in ending
    assert "01-french" not in ending


def test_more_values_than_a_call_takes_all_arrive(
    server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker(server.uri, EXPERIMENT, "many")
    stage = tracker.child("00-english")
    stage.log_rows(rows_of(range(2500)))
    deliver(tracker)
    assert history(server.uri, stage.id) == expected(range(2500))
    assert caplog.records == []


def test_odd_values_and_names_reach_a_server(server: MlflowServer) -> None:
    tracker = open_tracker(server.uri, EXPERIMENT, "nan")
    stage = tracker.child("00-english", params={"odd (name)": 1})
    stage.log(0, {"train/loss": math.nan, "heldout/fran\u00e7ais (2)": math.inf})
    deliver(tracker)
    ((_, value),) = history(server.uri, stage.id)
    assert math.isnan(value)
    ((_, value),) = history(server.uri, stage.id, "heldout/fran\u00e7ais _2_")
    assert value > 1e300
    assert client(server.uri).get_run(stage.id).data.params == {"odd _name_": "1"}


def test_the_ui_shows_what_training_writes_into_the_database(server: MlflowServer) -> None:
    tracker = open_tracker(server.database, "direct", "lineage")
    tracker.parent_run().artifact(b"\x89PNG", "plots/curve.png")
    deliver(tracker)
    place = f"run_id={tracker.lineage_run_id}&path=plots/curve.png"
    with urllib.request.urlopen(f"{server.uri}/get-artifact?{place}", timeout=30) as answer:
        assert answer.read() == b"\x89PNG"


def test_artifacts_go_through_a_server(server: MlflowServer, tmp_path: Path) -> None:
    tracker = open_tracker(server.uri, EXPERIMENT, "artifacts")
    tracker.parent_run().artifact(b"1,2\n", "matrix/loss.csv")
    tracker.parent_run().artifact(b"3,4\n", "matrix/loss.csv")
    deliver(tracker)
    mlflow = client(server.uri)
    names = [item.path for item in mlflow.list_artifacts(tracker.lineage_run_id, "matrix")]
    assert names == ["matrix/loss.csv"]
    beside = Path(server.database.removeprefix("sqlite:///")).parent / "artifacts"
    assert len(list(beside.rglob("matrix/loss.csv"))) == 1
    local = mlflow.download_artifacts(tracker.lineage_run_id, "matrix/loss.csv", str(tmp_path))
    assert Path(local).read_bytes() == b"3,4\n"


def test_logging_returns_while_the_server_is_dead_and_arrives_when_it_is_back(
    server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "perennial.tracking")
    tracker = open_tracker(server.uri, EXPERIMENT, "outage")
    stage = tracker.child("00-english")
    stage.log_rows(rows_of(range(10)))
    until(lambda: bool(stage.id and history(server.uri, stage.id)), "the first rows arrive")

    server.kill()
    for step, _, values in rows_of(range(10, 1600)):
        stage.log(step, values)
    stage.artifact(b"{}", "matrix.json")
    late = tracker.child("01-french")
    late.log_rows(rows_of(range(4)))
    assert not server.up()
    assert late.id is None
    until(lambda: "does not answer" in caplog.text, "the outage is noticed")
    server.start()
    deliver(tracker)

    assert history(server.uri, stage.id) == expected(range(1600))
    assert history(server.uri, late.id) == expected(range(4))
    assert [item.path for item in client(server.uri).list_artifacts(stage.id)] == ["matrix.json"]
    assert len(runs_of(server.uri, "outage")) == 3
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO"]


def test_closing_with_the_server_down_ends_and_says_what_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        port = nobody_listens.getsockname()[1]
        tracker = open_tracker(f"http://me:hunter2@127.0.0.1:{port}", EXPERIMENT, "down")
        stage = tracker.child("00-english", run_id="0" * 32)
        stage.log_rows(rows_of(range(5, 9)))
        stage.artifact(b"{}", "matrix.json")
        stage.finish()
        until(lambda: "does not answer" in caplog.text, "the outage is noticed")
        tracker.close(timeout_seconds=0.1)
    ending = caplog.records[-1].getMessage()
    assert len(caplog.records) == 2
    assert f"http://***@127.0.0.1:{port}" in ending
    missing = "4 values of steps 5 to 8, artifact matrix.json, its end as FINISHED"
    assert f"down/00-english: the run itself, {missing}" in ending
    assert "hunter2" not in caplog.text


def test_closing_with_the_server_frozen_ends_and_says_what_is_missing(
    server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker(server.uri, EXPERIMENT, "frozen")
    stage = tracker.child("00-english")
    assert stage.wait_id(PATIENCE_SECONDS)
    server.signal(signal.SIGSTOP)
    try:
        stage.log_rows(rows_of(range(3)))
        tracker.close(timeout_seconds=2.0)
    finally:
        server.signal(signal.SIGCONT)
    assert "frozen/00-english: 3 values of steps 0 to 2" in caplog.text


@pytest.mark.parametrize("place", ["s3://bucket/runs/releases", "/data/store/releases"])
@pytest.mark.parametrize("kind", ["database", "server"])
def test_a_release_is_one_version_in_the_registry_and_aliases_move(
    kind: str, place: str, server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    uri = server.uri if kind == "server" else server.database
    model = f"lineage-{kind}-{place.partition(':')[0].replace('/', '')}"
    tracker = open_tracker(uri, EXPERIMENT, model)
    for name, alias in [("00-en-8", "stage-00-en"), ("01-fr.2-16", "stage-01-fr.2")]:
        run = tracker.child(f"release-{name}")
        tags = {"perennial.step": 8}
        run.register(model, name, f"{place}/{name}", [alias, "newest"], tags)
        run.register(model, name, f"{place}/{name}", [alias])  # again, after a restart
        run.finish()
    deliver(tracker)

    mlflow = client(uri)
    versions = mlflow.search_model_versions(f"name = '{model}'")
    first, second = sorted(versions, key=lambda version: int(version.version))
    assert first.tags["perennial.release"] == "00-en-8"
    assert first.tags["perennial.location"] == f"{place}/00-en-8"
    assert first.tags["perennial.step"] == "8"
    if place.startswith("s3://"):
        assert first.source == f"{place}/00-en-8"
    assert first.run_id in {run.info.run_id for run in runs_of(uri, model)}
    pointed = {
        alias: mlflow.get_model_version_by_alias(model, alias).version
        for alias in ("stage-00-en", "stage-01-fr-2", "newest", "latest")
    }
    assert pointed == {
        "stage-00-en": first.version,
        "stage-01-fr-2": second.version,
        "newest": second.version,
        "latest": second.version,
    }
    assert caplog.records == []


QUIET = """
import sys
from perennial.tracking import open_tracker
heavy = {"mlflow", "sqlalchemy", "pandas", "torch", "ray", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
tracker = open_tracker(sys.argv[1], "perennial", "quiet")
stage = tracker.child("00-english")
stage.log(0, {"train/loss": 1.0})
stage.artifact(b"{}", "matrix.json")
stage.finish()
tracker.close(90)
assert "mlflow" in sys.modules
"""


@pytest.mark.parametrize("kind", ["new database", "server"])
def test_importing_is_light_and_mlflow_says_nothing(
    kind: str, server: MlflowServer, tmp_path: Path
) -> None:
    new = f"sqlite:///{tmp_path}/new/mlflow/mlflow.db"
    uri = new if kind == "new database" else server.uri
    source = Path(__file__).parents[3] / "platform"
    done = subprocess.run(
        [sys.executable, "-c", QUIET, uri],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    ended = [run.info.status for run in runs_of(uri, "quiet")]
    assert sorted(ended) == ["FINISHED", "RUNNING"]
