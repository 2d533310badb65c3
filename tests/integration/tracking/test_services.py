"""Tracking in TensorBoard's files and in W&B offline, by the door of MLflow."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

import perennial
from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.errors import InputError
from perennial.telemetry.mlflow_observer import MlflowObserver, tracking_uri
from perennial.tracking import Tracker, open_tracker, tensorboard_in, wandb_in
from tests.support.mlflow_server import PATIENCE_SECONDS
from tests.support.service_files import read_pictures, read_scalars, read_texts, read_wandb
from tests.support.tiny_run import tiny_run, write_run, write_texts

AT_MS = 1_700_000_000_000
SERVICES = ["tensorboard", "wandb"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def _open(service: str, folder: Path, lineage: str = "lineage", store: str = "") -> Tracker:
    if service == "wandb":
        pytest.importorskip("wandb", reason="pip install 'perennial[wandb]'")
        return open_tracker(
            None, "perennial", lineage, others=[wandb_in("perennial", folder, store)]
        )
    others = [tensorboard_in(folder / "tensorboard")]
    return open_tracker(None, "perennial", lineage, others=others)


def _losses(service: str, folder: Path, run: str = "lineage/00-english") -> list[tuple[int, float]]:
    """Return the steps and values that a service's files have of the training loss."""
    if service == "tensorboard":
        return read_scalars(folder / "tensorboard" / run).get("train/loss", [])
    rows = read_wandb(folder)["history"]
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


def _rows(steps: range) -> list[tuple[int, int, dict[str, float]]]:
    return [(step, AT_MS + step, {"train/loss": 0.5**step}) for step in steps]


@pytest.mark.parametrize("service", SERVICES)
def test_a_run_that_goes_on_has_every_step_once(service: str, tmp_path: Path) -> None:
    for steps in (range(1, 5), range(3, 8)):
        tracker = _open(service, tmp_path)
        run = tracker.child("00-english", params={"replay": 0.25})
        run.log_rows(_rows(steps), tokens_per_step=1024)
        run.finish("KILLED")
        receipt = tracker.close(PATIENCE_SECONDS)
        assert receipt.missing == ()
    assert _losses(service, tmp_path) == [(step, 0.5**step) for step in range(1, 8)]


def test_stores_of_one_name_share_no_run_of_wandb(tmp_path: Path) -> None:
    for number, store in enumerate("aba"):
        tracker = _open("wandb", tmp_path, store=store * 32)
        tracker.child("00-english").log(number + 1, {"train/loss": float(number)})
        assert tracker.close(PATIENCE_SECONDS).missing == ()
    stages = [r for r in read_wandb(tmp_path)["run"] if r.display_name == "00-english"]
    ids = [stage.run_id for stage in stages]
    assert len(set(ids)) == 2


def test_a_folder_that_stores_share_has_one_for_each_of_tensorboard(tmp_path: Path) -> None:
    for store in "ab":
        document = tiny_run(tmp_path, f"{tmp_path}/{store}")
        document |= {"tracking": {"to": ["tensorboard"], "folder": f"{tmp_path}/shared"}}
        run = perennial.open(write_run(tmp_path, document))
        # A store that no controller has opened yet has the id of its first entry, which has the
        # second: another corpus.
        run.land(f"help-{store}", [write_texts(tmp_path)["help"]])
        run.hold(f"help-{store}")
        run.track()
    folders = [path.parent for path in (tmp_path / "shared").rglob("tiny")]
    assert len(folders) == 2


def test_tensorboard_has_pictures_texts_and_values_over_tokens(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "matrix.png")
    tracker = _open("tensorboard", tmp_path)
    run = tracker.child("00-english", params={"replay": 0.25})
    run.log_rows(_rows(range(1, 3)), tokens_per_step=1024)
    run.artifact(tmp_path / "matrix.png", "matrix.png")
    run.artifact(b"said", "samples.txt")
    run.artifact(b"{}", "matrix.json")
    run.tag("front", "True")
    run.finish()
    assert tracker.close(PATIENCE_SECONDS).missing == ()
    folder = tmp_path / "tensorboard/lineage/00-english"
    assert read_scalars(folder)["versus_tokens/train/loss"] == [(1024, 0.5), (2048, 0.25)]
    assert read_pictures(folder) == {"matrix.png": (tmp_path / "matrix.png").read_bytes()}
    texts = {tag.partition("/text_summary")[0]: text for tag, text in read_texts(folder).items()}
    assert texts["samples.txt"] == "said"
    assert (texts["front"], texts["status"]) == ("True", "FINISHED")
    assert "| replay | 0.25 |" in texts["parameters"]


def test_wandb_has_a_group_a_lineage_and_a_release_as_a_model(tmp_path: Path) -> None:
    tracker = _open("wandb", tmp_path)
    run = tracker.child("release-v1", params={"replay": 0.25})
    run.log_rows(_rows(range(1, 3)), tokens_per_step=1024)
    run.artifact(b"{}", "plots/matrix.json")
    run.register("lineage", "v1", "s3://bucket/releases/v1", ["stage-00-english"], {"step": 3})
    run.finish()
    assert tracker.close(PATIENCE_SECONDS).missing == ()
    records = read_wandb(tmp_path)
    assert {run.run_group for run in records["run"]} == {"lineage"}
    assert {run.display_name for run in records["run"]} == {"lineage", "release-v1"}
    (model,) = records["artifact"]
    assert (model.name, model.type) == ("lineage", "model")
    assert "s3://bucket/releases/v1" in model.metadata
    assert list(tmp_path.glob("wandb/offline-run-*/files/plots/matrix.json"))


def test_wandb_without_a_key_asks_for_nothing_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb", reason="pip install 'perennial[wandb]'")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    tracker = _open("wandb", tmp_path)
    with caplog.at_level(logging.WARNING):
        receipt = tracker.close(PATIENCE_SECONDS)
    assert receipt.missing == ("lineage: the run itself",)
    assert "WANDB_MODE=offline" in receipt.reason


def test_services_are_those_of_the_run_file(tmp_path: Path) -> None:
    document = tiny_run(tmp_path) | {"tracking": {"to": ["tensorboard"]}}
    observer = MlflowObserver()
    work = Workspace(RunSpec.model_validate(document), "run.yaml", [observer], run_ids=observer)
    observer.check(work)
    observer.tracker(work).parent_run().log(1, {"heldout/a": 2.0})
    work.close()
    values = read_scalars(tmp_path / "store/tensorboard/tiny")
    assert values == {"heldout/a": [(1, 2.0)]}
    assert not (tmp_path / "store/mlflow").exists()
    with pytest.raises(InputError) as error:
        tracking_uri(work)
    assert error.value.code == "tracking-without-mlflow"


@pytest.mark.parametrize("folder", [None, "s3://bucket/files"])
def test_files_of_a_store_in_a_bucket_need_a_local_folder(
    folder: str | None, tmp_path: Path
) -> None:
    tracked = {"to": ["tensorboard"], "folder": folder}
    document = tiny_run(tmp_path, "s3://bucket/run") | {"tracking": tracked}
    work = Workspace(RunSpec.model_validate(document), "run.yaml")
    with pytest.raises(InputError) as error:
        MlflowObserver().check(work)
    assert error.value.code == "tracking-folder-missing"


def test_a_service_whose_package_is_missing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perennial.tracking.destinations.PACKAGES", {"wandb": "no_such_package"})
    document = tiny_run(tmp_path) | {"tracking": {"to": ["wandb"]}}
    work = Workspace(RunSpec.model_validate(document), "run.yaml")
    with pytest.raises(InputError, match=r"pip install 'perennial\[wandb\]'") as error:
        MlflowObserver().check(work)
    assert error.value.code == "tracking-package-missing"
