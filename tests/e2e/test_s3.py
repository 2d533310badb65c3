"""The same run with its store, inbox and checkpoints in S3 (I8)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from perennial.runs.ledger import Ledger
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json, start
from tests.support.s3_server import CephServer, S3Server
from tests.support.tiny_run import SEQUENCE_LENGTH, tiny_run, write_run, write_texts
from tests.support.trained_run import STEPS, Lineage, document


def test_i8_a_stage_trains_in_a_bucket(
    s3_url: str, ray_head: dict[str, str], tmp_path: Path
) -> None:
    env = {**ray_head, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    run_file = write_run(tmp_path, tiny_run(tmp_path, store=s3_url))
    perennial("land", run_file, "help", write_texts(tmp_path)["help"], env=env)
    done = perennial_json("run", run_file, env=env)
    assert done["trained"] == 1
    assert [set(stage["losses"]) for stage in done["matrix"]["stages"]] == [{"help"}]
    store = open_store(s3_url)
    state = Ledger(store).read()
    state.validate()
    end = checkpoint.read_manifest(store, state.ends[state.stages[0].name])
    assert sum(end.tokens_seen.values()) == 12 * 8 * SEQUENCE_LENGTH
    assert perennial_json("status", run_file, env=env)["next"] == []


@pytest.mark.long
def test_i9_a_gateway_that_dies_in_mid_stage_changes_nothing(
    s3_url: str, s3_server: S3Server, tmp_path: Path, lineage: Lineage
) -> None:
    """Killed after the first checkpoint and started again, the bucket holds the local weights."""
    if not isinstance(s3_server, CephServer):
        pytest.skip("moto forgets its data when it is killed")
    env = {**s3_server.environment(), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    run_file = write_run(tmp_path, document(tmp_path) | {"store": s3_url})
    perennial("land", run_file, "help", write_texts(tmp_path)["help"], env=env)
    store = open_store(s3_url)
    process = start("run", run_file, env=env)
    while checkpoint.latest_step(store, "checkpoints/00-help") is None:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)  # polling a condition: the first checkpoint of the stage
    s3_server.kill_gateway()
    s3_server.start_gateway()
    out, err = process.communicate()
    assert process.returncode == 0, (out, err)
    end = f"checkpoints/00-help/{STEPS:08d}"
    remote = checkpoint.read_manifest(store, end).files
    local = checkpoint.read_manifest(lineage.store, end).files
    for name in (name for name in local if name.endswith(".safetensors")):
        assert remote[name].sha256 == local[name].sha256


def test_a_store_in_s3_asks_for_an_mlflow_before_any_compute(
    s3_url: str, s3_server: S3Server, tmp_path: Path
) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path, store=s3_url))
    line = perennial("run", run_file, env=s3_server.environment(), code=2)
    assert "set tracking.uri or MLFLOW_TRACKING_URI" in line
    assert open_store(s3_url).list("") == []
