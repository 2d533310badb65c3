"""DeepSpeed's configuration for a run, as plain data. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perennial.config.deepspeed_overrides import merge_settings
from perennial.training.engine.microbatch import micro_batches_per_rank

if TYPE_CHECKING:
    from perennial.config.training import TrainingSpec


def deepspeed_settings(spec: TrainingSpec, global_batch: int, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration: the run file's fields, and its block `deepspeed`.

    Gradient accumulation takes up what `world_size` workers of `micro_batch` sequences leave; see
    `share` for the losses' weights.
    """
    accumulation = micro_batches_per_rank(global_batch, spec.micro_batch, world_size)
    ours: dict[str, Any] = {
        # DeepSpeed wants this product; with parts of unlike sizes it is more than `global_batch`.
        "train_batch_size": spec.micro_batch * accumulation * world_size,
        "train_micro_batch_size_per_gpu": spec.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": spec.gradient_clip,
        "zero_optimization": {"stage": spec.zero_stage} | _offload(spec),
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own Adam for offloaded state is compiled on first use; torch's needs nothing.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": spec.precision == "bf16"},
        "fp16": {"enabled": spec.precision == "fp16"},
        "steps_per_print": 10**9,
    }
    if spec.precision == "bf16":
        # bf16 has 8 bits: a sum over micro batches and ranks would lose most of a small gradient.
        ours["communication_data_type"] = "fp32"
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
    return merge_settings(ours, spec.deepspeed)


def _offload(spec: TrainingSpec) -> dict[str, Any]:
    pinned = {"device": "cpu", "pin_memory": spec.gpus_per_worker > 0}
    parts = {
        "none": (),
        "optimizer": ("offload_optimizer",),
        "weights": ("offload_optimizer", "offload_param"),
    }
    return {part: pinned for part in parts[spec.cpu_offload]}
