"""The DeepSpeed engine around a model, and its whole weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops import __compatible_ops__

from perennial.training.share import micro_batches_per_rank

if TYPE_CHECKING:
    from perennial.spec.run import TrainingSpec


def build_engine(
    model: torch.nn.Module, spec: TrainingSpec, global_batch: int, world_size: int
) -> Any:
    """A DeepSpeed engine around the model, with torch's AdamW and a constant global batch.

    Gradient accumulation takes up what `world_size` workers of `micro_batch` sequences leave; see
    `share` for the losses' weights.
    """
    # A shared-memory all-reduce that would be compiled on first use; gloo serves without it.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")
    optimizer = torch.optim.AdamW(
        _decay_groups(model, spec.weight_decay), lr=0.0, betas=spec.betas, eps=spec.epsilon
    )
    accumulation = micro_batches_per_rank(global_batch, spec.micro_batch, world_size)
    settings = {
        # DeepSpeed wants this product; with parts of unlike sizes it is more than `global_batch`.
        "train_batch_size": spec.micro_batch * accumulation * world_size,
        "train_micro_batch_size_per_gpu": spec.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": spec.gradient_clip,
        "zero_optimization": {"stage": spec.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": spec.precision == "bf16"},
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    # DeepSpeed 0.19.8 steps once on zero gradients where ZeRO 0 keeps fp32 copies, and would
    # correct the moments' bias for one step too many.
    if spec.zero_stage == 0:
        optimizer.state.clear()
    return engine


def set_eta(engine: Any, eta: float) -> None:
    """The learning rate of the next optimizer step, for every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = eta


def gradient_norm(engine: Any) -> torch.Tensor | None:
    """The norm of the whole gradient, before clipping, where DeepSpeed keeps none; else None.

    ZeRO 0 in fp32 is stepped by torch alone. Call it between backward and step; it is None inside
    an accumulation, where no step is taken.
    """
    if not isinstance(engine.optimizer, torch.optim.Optimizer):
        return None
    if not engine.is_gradient_accumulation_boundary():
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def gather_weights(engine: Any) -> dict[str, torch.Tensor] | None:
    """The model's whole weights on the CPU, for rank 0; None for the others.

    A collective: every rank must call it. The tensors are copies, so training may go on while
    `engine.module.save_pretrained(folder, state_dict=weights)` writes them. A parameter that two
    modules share is there once, as transformers stores it.
    """
    keep = dist.get_rank() == 0
    weights: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in engine.module.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
            if keep:
                weights[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return weights if keep else None


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
