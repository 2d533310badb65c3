"""A trunk kit is taken from one run, and another run continues from it as the first one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoints
from tests.support.cli import perennial, perennial_json
from tests.support.tiny_run import tiny_run, write_run, write_texts

_SAME_DATA = (
    "corpora.holdout=0.1",
    "corpora.near_duplicates=null",
    "stages.budget=12 steps",
    "evaluation.documents=5",
    "training.workers=2",
    "training.cpus_per_worker=0.8",
)
"""What decides about a corpus's rows and is the user's to choose, as the first run has it."""


def _document(folder: Path, store: str) -> dict[str, Any]:
    document = tiny_run(folder, store)
    document["corpora"]["near_duplicates"] = None
    document["replay"] = {"share": 0.0}
    document["stages"]["optimizer"] = "keep"
    return document


def _end(store: Store, stage: str, step: int) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Digests of the tensors at the end of a stage, and what its steps computed."""
    key = f"checkpoints/{stage}/{step:08d}"
    manifest = checkpoints.read_manifest(store, key)
    digests = {n: f.sha256 for n, f in manifest.files.items() if n.endswith(".safetensors")}
    rows = checkpoints.read_rows(store, key, manifest)
    return digests, [{k: row[k] for k in ("loss", "gradient_norm", "eta", "phase")} for row in rows]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_from_a_kit_trains_what_its_trunk_trains(
    tmp_path: Path, store_url: str, ray_head: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {**ray_head, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    run_file = write_run(tmp_path, _document(tmp_path, store_url))
    texts = write_texts(tmp_path)
    perennial("land", run_file, "help", texts["help"], env=env)
    perennial("land", run_file, "code", texts["code"], env=env)
    perennial("run", run_file, env=env)
    store = open_store(store_url)
    asked = (run_file, "--trunk-kit", "--from", "00-help")
    preview = perennial("release", *asked, "--dry-run", env=env)
    assert "write a trunk kit of 00-help@12" in preview
    assert not store.list("kits")
    made = perennial_json("release", *asked, env=env)
    assert (made["source"], made["place"]) == ("00-help@12", f"{store.url}/kits/00-help-12")

    kit = tmp_path / "kit"
    for entry in store.list("kits/00-help-12"):
        target = kit / entry.key.removeprefix("kits/00-help-12/")
        target.parent.mkdir(parents=True, exist_ok=True)
        store.download(entry.key, target)
    monkeypatch.chdir(kit)
    where = yaml.safe_load(Path("run.yaml").read_text())["model"]["path"]
    assert where == ("." if store.is_local else made["place"])
    perennial("land", "run.yaml", "code", texts["code"], *_SAME_DATA, env=env)
    perennial("run", "run.yaml", *_SAME_DATA, env=env)
    theirs = open_store(tmp_path / "tiny-continued")
    assert _end(theirs, "00-code", 12) == _end(store, "01-code", 24)
    base = Ledger(theirs).read().base
    assert base is not None
    origin = base.imported.kit
    assert origin is not None
    assert (origin.digest, origin.run, origin.source) == (made["digest"], "tiny", "00-help@12")
    assert (origin.step, origin.phase) == (12, "constant")
    assert perennial_json("verify", "run.yaml", *_SAME_DATA, env=env)["holds"]
