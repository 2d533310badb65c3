"""The state of the optimizer that a join keeps."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from perennial.config.training import ModelSpec, TrainingSpec
from perennial.optimizers import AdamWConfig
from tests.support.gloo import run_on


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
