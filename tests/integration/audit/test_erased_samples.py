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


def _run(store: Store, folder: Path, **tracking: Any) -> perennial.Run:
    held = [Sample("help", SECRET, " go on"), Sample("code", "def", " f(): pass")]
    with_samples(store, "help", keep_samples(store, held))
    document = tiny_run(folder, store.url) | {"tracking": tracking}
    return perennial.open(write_run(folder, document))


def _with_text(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if SECRET.encode() in path.read_bytes()]


def test_a_run_that_mlflow_does_not_keep_is_erased_in_the_files_of_tensorboard(
    local: Store, tmp_path: Path
) -> None:
    run = _run(local, tmp_path, to=["tensorboard"])
    run.track()
    assert any(name.startswith("events.out") for name in _with_text(Path(local.url)))
    run.erase("help")
    assert _with_text(Path(local.url)) == []
    files = Path(local.url, "tensorboard").rglob("events.out*")
    assert any(b"f(): pass" in path.read_bytes() for path in files), "the others stay"
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
