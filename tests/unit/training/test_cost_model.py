"""Parameters, memory, checkpoint bytes and FLOPs of a model before it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.config import load_run
from perennial.optimizers import AdEMAMixConfig, MuonConfig
from perennial.training.cost_model import (
    checkpoint_bytes,
    flops_per_token,
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


def test_a_checkpoint_holds_weights_and_moments_and_in_bf16_the_fp32_weights() -> None:
    spec = load_run(PIPELINES / "paper-405m.yaml")
    size = model_size(model_config(spec.model, 50277, 0, 2048))
    fp32, bf16 = (spec.training.model_copy(update={"precision": p}) for p in ("fp32", "bf16"))
    assert checkpoint_bytes(size, fp32) == 12 * size.parameters
    assert checkpoint_bytes(size, bf16) == 14 * size.parameters


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
    more = checkpoint_bytes(size, slow) - checkpoint_bytes(size, spec.training)
    assert more == 4 * size.parameters


def test_muon_stores_4_bytes_less_of_each_weight_of_a_hidden_matrix() -> None:
    spec = load_run(PIPELINES / "paper-405m.yaml")
    size = model_size(model_config(spec.model, 50277, 0, 2048))
    assert size.hidden_matrices == 24 * 12 * 1024**2
    muon = spec.training.model_copy(update={"optimizer": MuonConfig(kind="muon")})
    less = checkpoint_bytes(size, spec.training) - checkpoint_bytes(size, muon)
    assert less == 4 * size.hidden_matrices
