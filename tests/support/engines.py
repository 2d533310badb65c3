"""Engines of a group of one process, and what a step of theirs changes."""

from __future__ import annotations

from typing import Any

import torch

from perennial.config.training import TrainingSpec
from perennial.training.engine.deepspeed_internals import owned_shards
from perennial.training.engine.engine import build_engine, losses_of, set_eta

END_OF_DOCUMENT = 3


def training_spec(**settings: Any) -> TrainingSpec:
    """The section `training` for one step of two rows, with what flash attention asks for."""
    if str(settings.get("attention")).startswith("flash"):
        settings |= {"gpus_per_worker": 1, "precision": "bf16"}
    return TrainingSpec.model_validate({"global_batch": 2, "micro_batch": 2} | settings)


def engine_of_one(model: Any, spec: TrainingSpec) -> Any:
    """The engine of this process alone; it probes the features."""
    return build_engine(model, spec, spec.global_batch, 1, END_OF_DOCUMENT)


class PlainModel:
    """A model where an engine is expected, for what an engine only passes on."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def stepped_weights(engine: Any) -> torch.Tensor:
    """All fp32 weights that this rank's optimizer steps, flat, in the order of their names."""
    shards = sorted(owned_shards(engine), key=lambda shard: shard.parameter)
    return torch.cat([shard.slice(shard.owner.detach().float()).clone() for shard in shards])


def one_step(model: Any, ids: torch.Tensor, settings: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """Loss of a global batch of ids `(batch, sequence)`, and the change of all fp32 weights.

    The step is one along the gradient: AdamW with an epsilon that drowns its second moment.
    """
    optimizer = {"kind": "adamw", "epsilon": 1e3, "weight_decay": 0.0}
    settings = {"global_batch": len(ids), "gradient_clip": 1e6, "optimizer": optimizer} | settings
    spec = training_spec(**settings)
    # Weights that bf16 holds exactly, so that all formats start alike.
    engine = engine_of_one(model.bfloat16().float(), spec)
    before = stepped_weights(engine)
    set_eta(engine, 1e3)
    total = 0.0
    first = range(0, len(ids), spec.micro_batch)
    parts = [ids[row : row + spec.micro_batch] for row in first]
    for part in parts:
        losses = losses_of(engine, part, spec, END_OF_DOCUMENT)
        engine.backward(losses.objective)
        engine.step()
        total += losses.loss.item() / len(parts)
    return total, stepped_weights(engine) - before
