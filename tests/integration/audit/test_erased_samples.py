"""Samples of held-out documents in what trackers keep, once their corpus is erased."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import perennial
from perennial.evaluation.kept_samples import keep_samples
from perennial.evaluation.samples import Sample
from perennial.runs.ledger import Ledger
from perennial.store import Store
from tests.integration.audit.conftest import with_samples
from tests.support.tiny_run import tiny_run, write_run

SECRET = "Dear Sir or Madam"


def _run(store: Store, place: Path, **tracking: Any) -> perennial.Run:
    held = [Sample("help", SECRET, " go on"), Sample("code", "def", " f(): pass")]
    with_samples(store, "help", keep_samples(store, held))
    document = tiny_run(place, store.url) | {"tracking": tracking}
    return perennial.open(write_run(place, document))


def _with_text(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("service", "files"), [("tensorboard", "events.out*"), ("wandb", "samples.txt")]
)
@pytest.mark.parametrize("shared", [False, True], ids=["in the store", "in a folder"])
def test_a_run_that_mlflow_does_not_keep_is_erased_in_the_files_of_a_service(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str, files: str,
    shared: bool,
) -> None:  # fmt: skip
    if service == "wandb":
        pytest.importorskip("wandb", reason="pip install 'perennial[wandb]'")
        monkeypatch.setenv("WANDB_MODE", "offline")
    place = tmp_path / "shared" if shared else Path(local.url)
    run = _run(local, tmp_path, to=[service], folder=str(place) if shared else None)
    run.track()
    holding = [path for path in (place / service).rglob(files) if SECRET in path.read_text("l1")]
    assert holding
    run.erase("help")
    assert _with_text(tmp_path) == []
    left = (place / service).rglob(files)
    assert any("f(): pass" in path.read_text("l1") for path in left), "the others stay"
    assert Ledger(local).read().corpora["help"].state == "erased"


@pytest.mark.long
@pytest.mark.parametrize("left", [False, True], ids=["trunk", "left"])
def test_mlflow_keeps_neither_samples_nor_a_page_with_them(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = _run(local, tmp_path)
    run.prepare_tracking()
    run.track()
    run.report()
    picture = next(Path(local.url, "mlflow").rglob("samples.txt")).with_name("sample-1-help.png")
    picture.write_bytes(b"drawn")
    assert {*_with_text(Path(local.url, "mlflow"))} == {"samples.txt", "report.html"}
    if left:
        run.rewind("00-help@5")
    run.erase("help")
    assert _with_text(Path(local.url)) == []
    assert not picture.exists()
