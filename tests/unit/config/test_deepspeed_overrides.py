"""The block `training.deepspeed`, and DeepSpeed's configuration made of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from perennial.config.training import TrainingSpec
from perennial.training.engine.deepspeed_config import deepspeed_settings


def _spec(**settings: Any) -> TrainingSpec:
    return TrainingSpec.model_validate({"global_batch": 8, "micro_batch": 2} | settings)


def test_the_block_is_merged_into_what_the_run_file_names() -> None:
    block = {
        "wall_clock_breakdown": True,
        "zero_optimization": {"overlap_comm": True, "offload_optimizer": {"buffer_count": 8}},
    }
    spec = _spec(zero_stage=2, cpu_offload="optimizer", deepspeed=block)
    settings = deepspeed_settings(spec, 8, 2, parameters=1001)
    assert settings["wall_clock_breakdown"] is True
    assert settings["gradient_accumulation_steps"] == 2
    assert settings["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 1001,
        "allgather_bucket_size": 1002,
        "overlap_comm": True,
        "offload_optimizer": {"device": "cpu", "pin_memory": False, "buffer_count": 8},
    }


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"train_batch_size": 4}, "deepspeed.train_batch_size is set by training.global_batch"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage is set by training.zero_st"),
        ({"bf16": {"enabled": True}}, "deepspeed.bf16.enabled is set by training.precision"),
        ({"optimizer": {"type": "Adam"}}, "deepspeed.optimizer is set by training.betas"),
        ({"scheduler": {"type": "WarmupLR"}}, "is set by the section schedule"),
        (
            {"zero_optimization": {"offload_param": {"device": "nvme"}}},
            "offload_param.device is set by training.cpu_offload",
        ),
        (
            {"tensor_parallel": {"autotp_size": 2}},
            "tensor_parallel is set by training.tensor_parallel",
        ),
        ({"expert_parallel": {"enabled": True}}, "deepspeed.expert_parallel.enabled is not among"),
        ({"sequence_parallel_size": 2}, "deepspeed.sequence_parallel_size is not among the keys"),
        (
            {"zero_optimization": {"offload_optimizer": {"super_offload": True}}},
            "offload_optimizer.super_offload is not among the keys",
        ),
        (
            {"zero_optimization": {"overlap_com": True}},
            "you mean zero_optimization.overlap_comm",
        ),
        ({"data_types": {"grad_accum_dtype": "fp8"}}, "'fp8' is refused; use fp32, or bf16"),
    ],
)
def test_what_has_a_field_of_its_own_is_refused_by_name(block: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told.replace(".", r"\.")):
        _spec(deepspeed=block)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"cpu_offload": "optimizer", "zero_stage": 0}, "needs ZeRO"),
        ({"cpu_offload": "weights", "zero_stage": 2}, "set zero_stage to 3"),
        ({"attention": "flash_attention_2", "precision": "bf16"}, "needs GPUs"),
        ({"attention": "flex_attention"}, "needs GPUs"),
        ({"attention": "flash_attention_2", "gpus_per_worker": 1}, "does not compute in fp32"),
        ({"precision": "fp16"}, "precision fp16 needs GPUs"),
        ({"gpus_per_worker": 0.5}, "gpus_per_worker 0.5 is refused"),
        ({"gpus_per_worker": 2}, "a worker is one process with one GPU"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        _spec(**settings)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_gpu_run_is_described_to_deepspeed_as_its_fields_say(precision: str) -> None:
    spec = _spec(
        zero_stage=3,
        cpu_offload="weights",
        precision=precision,
        gpus_per_worker=1,
        attention="flash_attention_2",
    )
    settings = deepspeed_settings(spec, 8, 1, parameters=10**10)
    moved = {"device": "cpu", "pin_memory": True}
    assert settings["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 5 * 10**8,
        "allgather_bucket_size": 5 * 10**8,
        "offload_optimizer": moved,
        "offload_param": moved,
    }
    assert [settings[name]["enabled"] for name in ("bf16", "fp16")] == [
        precision == "bf16",
        precision == "fp16",
    ]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_sums_its_gradients_in_fp32_unless_the_block_says_otherwise(stage: int) -> None:
    spec = _spec(zero_stage=stage, precision="bf16")
    settings = deepspeed_settings(spec, 8, 1, 1000)
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    assert settings["communication_data_type"] == "fp32"
    block = {"data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16"}
    spec = _spec(zero_stage=stage, precision="bf16", deepspeed=block)
    settings = deepspeed_settings(spec, 8, 1, 1000)
    assert settings["data_types"] == {"grad_accum_dtype": "bf16"}
    assert "data_types" not in deepspeed_settings(_spec(zero_stage=stage), 8, 1, 1000)
