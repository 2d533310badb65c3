"""What the loop of a real run tells of itself: the shares of its time, its joins, the moments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from perennial.config.training import ModelSpec, TrainingSpec
from perennial.optimizers import AdamWConfig
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.engine.step_timer import PARTS
from tests.support.gloo import run_on
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


def _forget(folder: Path) -> None:
    from perennial.training.checkpoint.tensors import write_tensors
    from perennial.training.engine.deepspeed_internals import inner_optimizer
    from perennial.training.engine.engine import build_engine, set_eta
    from perennial.training.engine.optimizer_state import (
        forget_direction,
        load_optimizer,
        optimizer_state,
    )
    from perennial.training.model.config import model_config, random_model

    config = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    spec = ModelSpec(architecture="gpt_neox", config=config | {"num_attention_heads": 2})
    model = random_model(model_config(spec, 64, 0, 8), seed=1)
    training = TrainingSpec.model_validate({"global_batch": 1, "micro_batch": 1})
    engine = build_engine(model, training, 1, 1, 0)
    for step in range(3):
        ids = torch.randint(0, 64, (1, 8), generator=torch.manual_seed(step))
        set_eta(engine, 1e-2)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    adamw = AdamWConfig()
    tensors, steps = optimizer_state(engine, adamw)
    write_tensors(tensors, folder / "optimizer-00-of-01.safetensors")
    load_optimizer(engine, adamw, folder.glob("optimizer-*"), steps)
    before = [state["exp_avg_sq"].clone() for state in inner_optimizer(engine).state.values()]
    forget_direction(engine, adamw)
    facts = [
        {
            "direction": bool(state["exp_avg"].any()),
            "second moment": bool(second.any()),
            "unchanged": torch.equal(state["exp_avg_sq"], second),
            "steps": int(state["step"]),
        }
        for state, second in zip(inner_optimizer(engine).state.values(), before, strict=True)
    ]
    (folder / "facts.json").write_text(json.dumps(facts))


def test_a_kept_second_moment_keeps_its_steps_and_no_direction(tmp_path: Path) -> None:
    run_on(1, _forget, tmp_path)
    kept = {"direction": False, "second moment": True, "unchanged": True, "steps": 3}
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts
    assert all(fact == kept for fact in facts)
