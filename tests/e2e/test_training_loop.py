"""What the loop of a real run tells of itself: the shares of its time, its joins."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.engine.step_timer import PARTS
from tests.support.trained_run import Lineage


def _rows(lineage: Lineage, stage: str) -> list[dict[str, Any]]:
    step = checkpoint.latest_step(lineage.store, f"checkpoints/{stage}")
    assert step is not None
    key = checkpoint.folder_of(f"checkpoints/{stage}", step)
    manifest = checkpoint.read_manifest(lineage.store, key)
    data = lineage.store.read(manifest.key_of(key, "metrics.jsonl"))
    return [json.loads(line) for line in data.splitlines()]


def test_the_parts_of_every_step_add_up_to_its_time(lineage: Lineage) -> None:
    for row in _rows(lineage, "00-help") + _rows(lineage, "01-code"):
        seconds = row["seconds"]
        assert set(seconds) == set(PARTS)
        whole = row["batch_tokens"] / row["tokens_per_second"]
        assert sum(seconds.values()) == pytest.approx(whole)
        assert min(seconds[part] for part in ("forward", "backward", "optimizer")) > 0
        assert seconds["communication"] > 0  # two workers


def test_the_join_of_a_stage_is_measured_on_both_sides(lineage: Lineage) -> None:
    assert not any("heldout" in row for row in _rows(lineage, "00-help"))
    rows = _rows(lineage, "01-code")
    first = rows[0]["step"] - 1
    assert [row["step"] - first for row in rows if "heldout" in row] == [1, 2, 4, 8, 16, 32]
    before = rows[0]["heldout_before"]
    assert set(before) == {"new", "old"}
    assert before["old"] < before["new"]  # the trunk knows the one and not the other
    (last,) = (row["heldout"] for row in rows if row["step"] - first == 32)
    assert last["new"] < before["new"]


def test_mlflow_has_the_shares_and_the_join(lineage: Lineage) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{lineage.store.url}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("perennial")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    metrics = runs["01-code"].data.metrics
    assert sum(metrics[f"time/{part}"] for part in PARTS) == pytest.approx(1)
    rows = _rows(lineage, "01-code")
    history = client.get_metric_history(runs["01-code"].info.run_id, "join/heldout_old")
    told = {point.step: point.value for point in history}
    assert told[rows[0]["step"] - 1] == pytest.approx(rows[0]["heldout_before"]["old"])
    assert told == {rows[0]["step"] - 1: told[rows[0]["step"] - 1]} | {
        row["step"]: pytest.approx(row["heldout"]["old"]) for row in rows if "heldout" in row
    }
