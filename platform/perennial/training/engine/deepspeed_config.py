"""DeepSpeed's configuration for a run, as plain data. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perennial.config.deepspeed_overrides import merge_settings
from perennial.training.engine.microbatch import micro_batches_per_rank

if TYPE_CHECKING:
    from perennial.config.training import TrainingSpec


_LARGEST_BUCKET = 500_000_000
"""DeepSpeed's own size of a bucket, in numbers"""


def deepspeed_settings(
    spec: TrainingSpec, global_batch: int, world_size: int, parameters: int
) -> dict[str, Any]:
    """Return DeepSpeed's configuration: the run file's fields, and its block `deepspeed`.

    Gradient accumulation takes up what `world_size` workers of `micro_batch` sequences leave; see
    `micro_batches` for the losses' weights.

    Args:
        spec: the run file's section.
        global_batch: sequences in a step, over all workers.
        world_size: number of workers.
        parameters: number of the model's, above which no bucket needs to be.
    """
    bucket = min(parameters, _LARGEST_BUCKET)
    accumulation = micro_batches_per_rank(
        global_batch, spec.micro_batch, world_size // spec.tensor_parallel
    )
    ours: dict[str, Any] = {
        # DeepSpeed wants this product over all workers; where some have the same rows, or parts
        # are of unlike sizes, it is more than `global_batch`.
        "train_batch_size": spec.micro_batch * accumulation * world_size,
        "train_micro_batch_size_per_gpu": spec.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": spec.gradient_clip,
        "zero_optimization": {
            "stage": spec.zero_stage,
            # Memory that is allocated in every step, whatever of it is used.
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket + bucket % 2,  # NCCL's buffers are aligned to 4 bytes
        }
        | _offload(spec),
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
    if spec.tensor_parallel > 1:
        ours["tensor_parallel"] = {"autotp_size": spec.tensor_parallel}
    return merge_settings(ours, spec.deepspeed)


def _offload(spec: TrainingSpec) -> dict[str, Any]:
    pinned = {"device": "cpu", "pin_memory": spec.gpus_per_worker > 0}
    parts = {
        "none": (),
        "optimizer": ("offload_optimizer",),
        "weights": ("offload_optimizer", "offload_param"),
    }
    return {part: pinned for part in parts[spec.cpu_offload]}
