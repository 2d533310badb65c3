"""Releases of the trunk's end beside each other: its average, and anneals on two mixtures."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load
from transformers import AutoModelForCausalLM

from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json, start
from tests.support.tiny_run import SEQUENCE_LENGTH, tiny_run, write_run, write_texts

pytestmark = pytest.mark.long
AVERAGE = "01-code-24-average3"
Env = dict[str, str]


def test_they_are_rows_of_their_own_and_verify_proves_them(
    store_url: str, ray_head: Env, tmp_path: Path
) -> None:
    env = {**ray_head, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    run_file = write_run(tmp_path, tiny_run(tmp_path, store=store_url))
    for name, file in write_texts(tmp_path).items():
        perennial("land", run_file, name, file, env=env)
    assert perennial_json("run", run_file, env=env)["trained"] == 2
    store = open_store(store_url)
    plain = perennial_json("release", run_file, env=env)
    balanced = _balanced(store, run_file, env)
    assert balanced == f"{plain['name']}-balanced"
    _averaged_and_killed(store, run_file, env)
    _refused(run_file, env, balanced)
    assert perennial_json("verify", run_file, env=env)["holds"]
    rows = perennial_json("evaluate", run_file, env=env)["matrix"]["releases"]
    assert [row["release"] for row in rows] == [plain["name"], balanced, AVERAGE]
    assert all(set(row["losses"]) == {"help", "code"} for row in rows)


def _balanced(store: Store, run_file: Path, env: Env) -> str:
    """Release on equal parts of both corpora; return its name."""
    made = perennial_json("release", run_file, "--mixture", "balanced", env=env)
    name = made["name"]
    before = checkpoint.read_manifest(store, "checkpoints/01-code/00000024").tokens_seen
    after = checkpoint.read_manifest(store, f"branches/{name}/00000028").tokens_seen
    half = 4 * 4 * SEQUENCE_LENGTH
    assert after == {corpus: tokens + half for corpus, tokens in before.items()}
    assert "all corpora in equal parts" in store.read(f"{made['folder']}/README.md").decode()
    traced = perennial_json("trace", run_file, "--step", 25, "--release", name, env=env)
    assert traced["stage"] == f"release {name}"
    assert {document["corpus"] for document in traced["documents"]} == {"help", "code"}
    return str(name)


def _averaged_and_killed(store: Store, run_file: Path, env: Env) -> None:
    """Release an average, which is killed once it was planned, and made by the next command."""
    words = ("release", run_file, "--average", "last:3")
    told = perennial(*words, "--dry-run", env=env)
    assert f"average 3 checkpoints and export {AVERAGE}" in told
    assert told.count("weight 0.333,") == 3
    assert AVERAGE not in Ledger(store).read().releasing
    process = start(*words, env=env)
    while AVERAGE not in Ledger(store).read().releasing:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)  # polling a condition: the release is planned
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert AVERAGE not in [release.name for release in Ledger(store).read().releases]
    made = perennial_json(*words, env=env)
    assert (made["name"], made["steps"]) == (AVERAGE, 0)
    assert perennial_json(*words, env=env) == made
    planned = Ledger(store).read().branches[AVERAGE]
    assert planned.average is not None
    assert f"{planned.average}" in store.read(f"{made['folder']}/README.md").decode()
    models = []
    for source in planned.average.sources:
        manifest = checkpoint.read_manifest(store, source)
        models.append(load(store.read(manifest.key_of(source, "model.safetensors"))))
    weights = load(store.read(f"{made['folder']}/model.safetensors"))
    for name, tensor in weights.items():
        assert (tensor == np.stack([model[name] for model in models]).mean(axis=0)).all()
    if store.is_local:
        folder = Path(store.url, made["folder"])
        assert AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def _refused(run_file: Path, env: Env, balanced: str) -> None:
    def told(*words: object) -> str:
        return perennial(words[0], run_file, *words[1:], env=env, code=2)

    assert "of the trunk until there" in told("release", "--average", "last:99")
    assert "is not annealed" in told("release", "--average", "last:3", "--mixture", "seen")
    assert "--mixture: later: the anneal cannot" in told("release", "--mixture", "help=1,later=1")
    of_average = told("trace", "--step", 25, "--release", AVERAGE)
    assert "average of the trunk at steps" in of_average
    assert "name one from 25 to 28" in told("trace", "--step", 24, "--release", balanced)
