"""A copied store never writes into its source, and holds no path of the folder it lies in."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perennial
from perennial.cli.app import app
from perennial.controller.context import Workspace
from perennial.report.publish import Publisher, is_drawn
from perennial.runs.ledger import Ledger
from perennial.telemetry.mlflow_observer import MlflowObserver
from tests.support.digests import read_digests
from tests.support.mlflow_server import PATIENCE_SECONDS
from tests.support.old_store import OldStore, unpack_old_store


def _run(*words: object, as_json: bool = True) -> Any:
    result = CliRunner().invoke(app, [*map(str, words), *(["--json"] if as_json else [])])
    assert result.exit_code == 0, (words, result.output, result.exception)
    return json.loads(result.stdout)


def _name_by_path(mlflow: Path) -> None:
    """Name the artifacts by the path of their folder, as earlier versions did."""
    root = f"{mlflow}/artifacts"
    with closing(sqlite3.connect(mlflow / "mlflow.db")) as database:
        database.execute("UPDATE experiments SET artifact_location = ?", [root])
        change = "UPDATE runs SET artifact_uri = replace(artifact_uri, 'mlflow-artifacts:', ?)"
        database.execute(change, [root])
        database.commit()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OldStore:
    """A store of version 0.1 with an MLflow of that version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        source = unpack_old_store(tmp_path_factory.mktemp("source"))
        told = _run("track", source.run_file, source.override)
    assert (told["stages"], told["missing"], told["reason"]) == (["00-help"], [], "")
    assert told["runs"] == 3  # the lineage, the stage and the release
    assert told["values"] > 100
    assert told["files"] > 10
    _name_by_path(source.folder / "mlflow")
    return source


def _copy(source: OldStore, folder: Path) -> OldStore:
    shutil.copytree(source.run_file.parent, folder)
    return OldStore(folder / "run.yaml", folder / "store")


@pytest.mark.long
def test_every_verb_on_a_copy_leaves_its_source_as_it_is(
    source: OldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy = _copy(source, tmp_path / "copy")
    run, before = (copy.run_file, copy.override), read_digests(source.run_file.parent)
    for verb in ("status", "verify", "plan"):
        _run(verb, *run)
    for verb in ("run", "release", "evaluate", "ingest", "ui"):
        _run(verb, *run, "--dry-run", as_json=False)
    opened = perennial.open(copy.run_file, [copy.override])
    opened.prepare_tracking()
    assert f"sqlite:///{copy.folder}/mlflow/mlflow.db" in opened.ui_command()
    assert f"{copy.folder}/mlflow/artifacts" in opened.ui_command()
    assert _run("report", *run)["page"] == f"{copy.folder}/report/report.html"
    # What is there already, and here that is all, is not delivered again.
    again = _run("track", copy.folder)
    assert (again["stages"], again["missing"], again["values"]) == (["00-help"], [], 0)
    assert again["files"] > 10
    assert _run("compare", copy.folder, source.folder)["corpora"] == ["help"]
    opened.land("more", [copy.folder / "inbox" / "help" / "help.jsonl"])
    _run("retire", copy.run_file, "help", copy.override)

    assert read_digests(source.run_file.parent) == before
    assert Ledger(copy.store).read().corpora["help"].state == "retired"
    assert (copy.folder / "inbox" / "more" / "_SUCCESS").is_file()
    (page,) = (copy.folder / "mlflow" / "artifacts").rglob("report.html")
    assert page.read_bytes() == (copy.folder / "report" / "report.html").read_bytes()
    for folder in (copy.run_file.parent, source.run_file.parent):
        _assert_no_path_of(folder, copy)


def _assert_no_path_of(folder: Path, copy: OldStore) -> None:
    path = str(folder).encode()
    for file in copy.folder.rglob("*"):
        if file.is_file() and file.name != "mlflow.db":  # its free pages keep what was replaced
            assert path not in file.read_bytes(), file
    with closing(sqlite3.connect(copy.folder / "mlflow" / "mlflow.db")) as database:
        assert str(folder) not in "\n".join(database.iterdump())


def _observed(copy: OldStore) -> tuple[Workspace, MlflowObserver]:
    """Return the run with what follows a controller into the store and MLflow."""
    mlflow = MlflowObserver()
    spec = perennial.open(copy.run_file, [copy.override]).spec
    work = Workspace(spec, "run.yaml", [Publisher(mlflow), mlflow], run_ids=mlflow)
    work.ledger.read()
    return work, mlflow


def _tracked_runs(copy: OldStore) -> list[str]:
    with closing(sqlite3.connect(copy.folder / "mlflow" / "mlflow.db")) as database:
        wanted = "SELECT name FROM runs WHERE lifecycle_stage = 'active' ORDER BY name"
        return [name for (name,) in database.execute(wanted)]


def test_pictures_that_a_kill_prevented_are_made_at_the_next_look(
    source: OldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between `evaluated` and the last of the pictures."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy = _copy(source, tmp_path / "copy")
    shutil.rmtree(copy.folder / "report")
    shutil.rmtree(copy.folder / "mlflow")
    work, _ = _observed(copy)
    assert not is_drawn(work)
    work.notify(lambda observer: observer.looked(work))
    work.close()
    assert is_drawn(work)
    assert (copy.folder / "report" / "matrix.png").is_file()
    assert _tracked_runs(copy) == ["00-help", "before", "release-00-help-12-anneal4"]
    before = read_digests(copy.folder)
    again, _ = _observed(copy)
    again.notify(lambda observer: observer.looked(again))
    again.close()
    assert read_digests(copy.folder) == before, "nothing is missing, so nothing is written"


@pytest.mark.long
def test_a_run_fills_an_mlflow_that_was_emptied(
    source: OldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy = _copy(source, tmp_path / "copy")
    shutil.copy(copy.run_file, copy.folder / "mlflow" / "mlflow.db")
    work, mlflow = _observed(copy)
    assert mlflow.tracker(work).parent_run().wait_id(PATIENCE_SECONDS)
    stage = work.state.stages[0]
    work.notify(lambda observer: observer.stage_evaluated(work, stage))
    work.close()
    assert _tracked_runs(copy) == ["00-help", "before", "release-00-help-12-anneal4"]
    (kept,) = (copy.folder / "mlflow").glob("mlflow.db.set-aside-*")
    assert kept.read_bytes() == copy.run_file.read_bytes()


_WITHOUT_PRIVILEGE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # root without the capability to ignore permissions
os.execv(sys.executable, [sys.executable, "-m", "perennial.cli", *sys.argv[1:]])
"""


def test_a_page_elsewhere_needs_no_store_that_can_be_written(
    source: OldStore, tmp_path: Path
) -> None:
    copy, page = _copy(source, tmp_path / "copy"), tmp_path / "page.html"
    shutil.rmtree(copy.folder / "report")
    (copy.folder / "report").write_text("a file where the folder should be")
    before = read_digests(copy.folder)
    told = _run("report", copy.folder, "--output", page)
    assert told["page"] == str(page)
    assert "00-help-12-anneal4" in page.read_text()
    assert read_digests(copy.folder) == before


@pytest.mark.long
def test_a_store_that_is_only_read_gives_its_page(source: OldStore, tmp_path: Path) -> None:
    copy = _copy(source, tmp_path / "copy")
    before = read_digests(copy.folder)
    for file in [copy.folder, *copy.folder.rglob("*")]:
        file.chmod(0o555 if file.is_dir() else 0o444)
    page = tmp_path / "page.html"
    words = ["report", str(copy.folder)]
    command = [sys.executable, "-c", _WITHOUT_PRIVILEGE, *words]
    paths = {"PYTHONPATH": str(Path(__file__).parents[3] / "platform"), "PATH": "/usr/bin:/bin"}
    given = subprocess.run(
        [*command, "--output", str(page)], env=paths, capture_output=True, text=True, check=False
    )
    refused = subprocess.run(command, env=paths, capture_output=True, text=True, check=False)
    for folder in [copy.folder, *copy.folder.rglob("*")]:
        folder.chmod(0o755)
    assert given.returncode == 0, given.stderr
    assert "00-help-12-anneal4" in page.read_text()
    assert "the store refused it" in given.stderr
    assert "Permission denied" in given.stderr
    assert "MLflow" not in given.stderr
    assert refused.returncode == 2
    assert "cannot be written (Permission denied)" in refused.stderr
    assert read_digests(copy.folder) == before
