"""The run file's `training.deepspeed` block: what of DeepSpeed's configuration may be passed on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_OWNED = {
    "train_batch_size": "training.global_batch",
    "train_micro_batch_size_per_gpu": "training.micro_batch",
    "gradient_accumulation_steps": "training.global_batch and training.micro_batch",
    "gradient_clipping": "training.gradient_clip",
    "optimizer": "training.betas, epsilon and weight_decay",
    "scheduler": "the section schedule",
    "bf16.enabled": "training.precision",
    "fp16.enabled": "training.precision",
    "torch_autocast": "training.precision",
    "amp": "training.precision",
    "zero_optimization.stage": "training.zero_stage",
    "zero_optimization.offload_optimizer.device": "training.cpu_offload",
    "zero_optimization.offload_param.device": "training.cpu_offload",
    "zero_allow_untested_optimizer": "the optimizer, which is torch's AdamW",
    "zero_force_ds_cpu_optimizer": "the optimizer, which is torch's AdamW",
    "steps_per_print": "the command line, which tells the steps",
    "elasticity": "training.workers",
    "checkpoint": "training.checkpoint_every and the store",
}
"""What Perennial sets itself, and the run file's field for it."""

_UNSTORED = {
    "bf16.bf16_master_weights_and_grads": "keeps no fp32 weights",
    "bf16.bf16_optimizer_states": "keeps the moments in bf16",
    "fp16.fp16_master_weights_and_grads": "keeps no fp32 weights",
    "zero_optimization.offload_optimizer.ratio": "steps a part of the weights elsewhere",
    "zero_optimization.zenflow": "steps a part of the weights later",
    "zero_optimization.mics_shard_size": "divides the weights otherwise",
    "tensor_parallel": "divides the weights otherwise",
    "pipeline": "divides the weights otherwise",
}
"""What would leave a state that a checkpoint does not know how to store."""


def check_overrides(block: Mapping[str, Any], zero_stage: int) -> None:
    """Raise ValueError for a key that has a field of its own, or that checkpoints cannot follow."""
    for key in _keys(block):
        if key in _OWNED:
            raise ValueError(
                f"deepspeed.{key} is set by {_OWNED[key]}; remove it from the block deepspeed"
            )
        if key in _UNSTORED:
            raise ValueError(
                f"deepspeed.{key} {_UNSTORED[key]}, which checkpoints do not store; remove it"
            )
    if zero_stage < 2 and "grad_accum_dtype" in block.get("data_types", {}):
        raise ValueError(
            "deepspeed.data_types.grad_accum_dtype takes another optimizer of DeepSpeed's below "
            "ZeRO 2; set zero_stage to 2 or 3"
        )


def merge_settings(ours: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings and the block's, nested mappings key by key; no key is in both."""
    result = dict(ours)
    for key, value in block.items():
        inner = result.get(key)
        result[key] = (
            merge_settings(inner, value)
            if isinstance(inner, Mapping) and isinstance(value, Mapping)
            else value
        )
    return result


def _keys(block: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key at every depth, dotted: `a`, `a.b`."""
    for key, value in block.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
