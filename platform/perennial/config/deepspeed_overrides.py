"""The mapping `training.deepspeed` of the run file: further keys of DeepSpeed's configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
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
    "tensor_parallel": "training.tensor_parallel",
    "checkpoint": "training.checkpoint_every and the store",
}
"""Keys of DeepSpeed that Perennial sets itself, with the key of the run file for each."""

_PASSED_ON = {
    "communication_data_type",
    "comms_logger",
    "data_types.grad_accum_dtype",
    "dump_state",
    "flops_profiler",
    "fp16.consecutive_hysteresis",
    "fp16.hysteresis",
    "fp16.initial_scale_power",
    "fp16.loss_scale",
    "fp16.loss_scale_window",
    "fp16.min_loss_scale",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "wall_clock_breakdown",
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.allgather_partitions",
    "zero_optimization.contiguous_gradients",
    "zero_optimization.ignore_unused_parameters",
    "zero_optimization.log_trace_cache_warnings",
    "zero_optimization.offload_optimizer.buffer_count",
    "zero_optimization.offload_optimizer.fast_init",
    "zero_optimization.offload_optimizer.pin_memory",
    "zero_optimization.offload_param.buffer_count",
    "zero_optimization.offload_param.buffer_size",
    "zero_optimization.offload_param.max_in_cpu",
    "zero_optimization.offload_param.pin_memory",
    "zero_optimization.overlap_comm",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.reduce_scatter",
    "zero_optimization.stage3_max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance",
    "zero_optimization.stage3_module_granularity_threshold",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.sub_group_size",
}
"""Keys of DeepSpeed that change how a step is computed, and neither what it computes nor the state
that checkpoints store; a mapping stands for all keys below it."""


def check_overrides(block: Mapping[str, Any]) -> None:
    """Refuse keys that Perennial sets itself, and keys that are not known to be safe.

    DeepSpeed has hundreds of keys, and every release has new ones. One that divides weights or
    moments otherwise would train, and lead to checkpoints that lack a part.

    Args:
        block: the mapping `training.deepspeed`.

    Raises:
        ValueError: "problem; remedy" for the first such key.
    """
    for key, value in _leaves(block):
        owned = next((part for part in _prefixes(key) if part in _OWNED), None)
        if owned is not None:
            raise ValueError(
                f"deepspeed.{owned} is set by {_OWNED[owned]}; remove it from the block deepspeed"
            )
        if not any(part in _PASSED_ON for part in _prefixes(key)):
            close = get_close_matches(key, _PASSED_ON, n=1)
            raise ValueError(
                f"deepspeed.{key} is not among the keys that are passed on, because checkpoints "
                "are not known to store every state that it leads to; "
                + (f"did you mean {close[0]}?" if close else "remove it")
            )
        if key == "data_types.grad_accum_dtype" and value not in ("fp32", "bf16"):
            raise ValueError(
                f"deepspeed.{key} {value!r} is refused; use fp32, or bf16 to save memory"
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


def _leaves(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key that holds no mapping, dotted (`a.b`), with its value."""
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _prefixes(key: str) -> Iterator[str]:
    """Yield a dotted key and the keys above it: `a.b`, `a`."""
    while key:
        yield key
        key = key.rpartition(".")[0]
