"""Parameters, memory, checkpoint bytes and FLOPs of a model before it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.config import load_run
from perennial.optimizers import AdEMAMixConfig
from perennial.training.cost_model import (
    activation_bytes,
    checkpoint_bytes,
    flops_per_token,
    memory,
    model_size,
    peak_flops,
)
from perennial.training.model.config import model_config

PIPELINES = Path(__file__).parents[3] / "pipelines"


@pytest.mark.parametrize(
    ("recipe", "parameters", "without_embeddings"),
    [
        ("paper-405m", 405_334_016, 302_311_424),
        ("paper-405m-infinite", 405_334_016, 302_311_424),
        ("paper-10b", 9_642_249_216, 9_175_108_608),
    ],
)
def test_the_papers_models_have_exactly_its_parameters(
    recipe: str, parameters: int, without_embeddings: int
) -> None:
    spec = load_run(PIPELINES / f"{recipe}.yaml")
    size = model_size(model_config(spec.model, 50277, 0, 2048))
    assert (size.parameters, size.without_embeddings) == (parameters, without_embeddings)
    assert spec.tokens_per_step == 1104 * 2048 == 2_260_992
    rotary = model_config(spec.model, 50277, 0, 2048).rope_parameters
    assert rotary["partial_rotary_factor"] == 0.25


def test_a_tied_head_is_counted_once_and_multiplied() -> None:
    spec = load_run(PIPELINES / "quickstart.yaml")
    untied = model_size(model_config(spec.model, 4096, 0, 256))
    tied_model = spec.model.model_copy(
        update={"config": spec.model.config | {"tie_word_embeddings": True}}
    )
    tied = model_size(model_config(tied_model, 4096, 0, 256))
    assert untied.parameters - tied.parameters == 4096 * 128
    assert tied.without_embeddings == untied.without_embeddings
    assert flops_per_token(tied, 256) == flops_per_token(untied, 256)


def test_flops_are_six_a_multiplied_parameter_and_those_of_attention() -> None:
    spec = load_run(PIPELINES / "paper-405m.yaml")
    size = model_size(model_config(spec.model, 50277, 0, 2048))
    multiplied = 405_334_016 - 50304 * 1024
    assert flops_per_token(size, 2048) == 6 * multiplied + 12 * 24 * 1024 * 2048


def test_zero_divides_what_its_stage_says_and_one_worker_holds_16_bytes_a_parameter() -> None:
    spec = load_run(PIPELINES / "paper-405m.yaml")
    size = model_size(model_config(spec.model, 50277, 0, 2048))
    parameters = size.parameters
    alone = memory(size, spec.training, 2048, 1, 1)
    assert alone.weights + alone.gradients + alone.optimizer == 16 * parameters
    by_stage = [memory(size, spec.training, 2048, stage, 64) for stage in range(4)]
    divided = [
        (m.weights < 2 * parameters, m.gradients < 2 * parameters, m.optimizer < 12 * parameters)
        for m in by_stage
    ]
    assert divided == [
        (False, False, False),
        (False, False, True),
        (False, True, True),
        (True, True, True),
    ]
    assert by_stage[3].weights == parameters * 2 // 64


def test_gradients_of_bf16_are_summed_in_fp32_unless_the_run_file_says_otherwise() -> None:
    spec = load_run(PIPELINES / "paper-405m.yaml")
    size = model_size(model_config(spec.model, 50277, 0, 2048))
    bf16 = spec.training.model_copy(update={"precision": "bf16"})
    small = bf16.model_copy(update={"deepspeed": {"data_types": {"grad_accum_dtype": "bf16"}}})
    assert memory(size, bf16, 2048, 1, 8).gradients == 4 * size.parameters
    assert memory(size, bf16, 2048, 2, 8).gradients == -(-4 * size.parameters // 8)
    assert memory(size, small, 2048, 1, 8).gradients == 2 * size.parameters


def test_checkpointing_leaves_one_layer_and_every_layers_input() -> None:
    spec = load_run(PIPELINES / "paper-405m.yaml")
    size = model_size(model_config(spec.model, 50277, 0, 2048))
    tokens, logits = 4 * 2048, 8 * 4 * 2048 * size.vocabulary
    kept = activation_bytes(size, 2048, 4, 2, recomputed=False, scores=True)
    again = activation_bytes(size, 2048, 4, 2, recomputed=True, scores=True)
    layer = tokens * 1024 * (34 + 5 * 16 * 2048 // 1024)  # Korthikanti et al., equation 2
    assert kept == 24 * layer + logits
    assert again == layer + 24 * 2 * tokens * 1024 + logits


def test_a_checkpoint_holds_weights_and_moments_and_in_bf16_the_fp32_weights() -> None:
    spec = load_run(PIPELINES / "paper-405m.yaml")
    size = model_size(model_config(spec.model, 50277, 0, 2048))
    fp32, bf16 = (spec.training.model_copy(update={"precision": p}) for p in ("fp32", "bf16"))
    assert checkpoint_bytes(size, fp32) == 12 * size.parameters
    assert checkpoint_bytes(size, bf16) == 14 * size.parameters


def test_what_waits_in_the_cpus_memory_or_is_never_written_is_not_counted() -> None:
    spec = load_run(PIPELINES / "paper-405m.yaml")
    size = model_size(model_config(spec.model, 50277, 0, 2048))
    away = spec.training.model_copy(update={"cpu_offload": "weights", "loss": "chunked"})
    told = memory(size, away, 2048, 3, 8)
    assert (told.weights, told.optimizer) == (0, 0)
    kept = memory(size, spec.training, 2048, 3, 8)
    assert kept.activations - told.activations == 8 * 4 * 2048 * size.vocabulary
    assert memory(size, away, 2048, 0, 8).optimizer == 12 * size.parameters


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("Tesla T4", 65),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name(name: str, teraflops: int) -> None:
    peak = peak_flops(name)
    assert peak == pytest.approx(teraflops * 1e12)
    assert peak_flops("Radeon") is None


def test_an_optimizer_with_a_third_average_takes_4_bytes_more_a_parameter() -> None:
    spec = load_run(PIPELINES / "paper-405m.yaml")
    size = model_size(model_config(spec.model, 50277, 0, 2048))
    slow = spec.training.model_copy(update={"optimizer": AdEMAMixConfig(kind="ademamix")})
    for stage, workers in ((0, 1), (1, 64)):
        more = memory(size, slow, 2048, stage, workers).optimizer
        more -= memory(size, spec.training, 2048, stage, workers).optimizer
        assert more == -(-4 * size.parameters // (workers if stage else 1))
    more = checkpoint_bytes(size, slow) - checkpoint_bytes(size, spec.training)
    assert more == 4 * size.parameters
