"""The mapping `training.deepspeed` of the run file: further keys of DeepSpeed's configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_OWNED = {
    "train_batch_size": "training.global_batch",
    "train_micro_batch_size_per_gpu": "training.micro_batch",
    "gradient_accumulation_steps": "training.global_batch and training.micro_batch",
    "gradient_clipping": "training.gradient_clip",
    "optimizer": "training.betas, epsilon and weight_decay, or training.optimizer",
    "scheduler": "the section schedule",
    "bf16.enabled": "training.precision",
    "fp16.enabled": "training.precision",
    "torch_autocast": "training.precision",
    "amp": "training.precision",
    "zero_optimization.stage": "training.zero_stage",
    "zero_optimization.offload_optimizer.device": "training.cpu_offload",
    "zero_optimization.offload_param.device": "training.cpu_offload",
    "zero_allow_untested_optimizer": "the optimizer, which is one of torch's",
    "zero_force_ds_cpu_optimizer": "the optimizer, which is one of torch's",
    "steps_per_print": "the command line, which shows the steps",
    "elasticity": "training.workers",
    "checkpoint": "training.checkpoint_every and the store",
}
"""Keys of DeepSpeed that Perennial sets itself, with the key of the run file for each."""

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
"""Keys of DeepSpeed that lead to a state which checkpoints cannot store, with the reason."""


def check_overrides(block: Mapping[str, Any], zero_stage: int) -> None:
    """Refuse keys that Perennial sets itself, and keys that checkpoints cannot store.

    Args:
        block: the mapping `training.deepspeed`.
        zero_stage: stage of ZeRO that the run uses.

    Raises:
        ValueError: "problem; remedy" for the first such key.
    """
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
            "deepspeed.data_types.grad_accum_dtype selects another optimizer of DeepSpeed below "
            "ZeRO 2, which checkpoints do not store; set zero_stage to 2 or 3"
        )


def merge_settings(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return two nested mappings merged key by key.

    Args:
        below: values that are kept where `above` has none.
        above: values that win.
    """
    result = dict(below)
    for key, value in above.items():
        inner = result.get(key)
        result[key] = (
            merge_settings(inner, value)
            if isinstance(inner, Mapping) and isinstance(value, Mapping)
            else value
        )
    return result


def _keys(block: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield every key at every depth, dotted: `a`, `a.b`."""
    for key, value in block.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
