"""Standard deviations of new weights by a named method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from perennial.config import load_run
from perennial.config.training import ModelSpec
from perennial.errors import InputError
from perennial.training.model.config import model_config, random_model
from perennial.training.model.initialisation import small_wang_deviations
from tests.support.small_models import small_model

PIPELINES = Path(__file__).parents[3] / "pipelines"


@pytest.mark.parametrize(
    ("recipe", "small", "wang"),
    [
        ("paper-405m", 0.0198, 0.0026),
        ("paper-405m-infinite", 0.0198, 0.0026),
        ("paper-10b", 0.0093, 0.00082),
    ],
)
def test_the_papers_files_have_the_papers_initialisation(
    recipe: str, small: float, wang: float
) -> None:
    spec = load_run(PIPELINES / f"{recipe}.yaml").model
    assert spec.init == "small-wang"
    size = (spec.config["hidden_size"], spec.config["num_hidden_layers"])
    assert small_wang_deviations(*size) == pytest.approx((small, wang), rel=0.01)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2", "qwen3"])
def test_matrices_are_drawn_with_its_deviations_and_vectors_stay(architecture: str) -> None:
    config = small_model(architecture, hidden_size=64, intermediate_size=128).config
    model = random_model(config, 7, "small-wang")
    small, wang = small_wang_deviations(64, 2)
    deviations = {
        name: parameter.std().item()
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }
    into_stream = [n for n, d in deviations.items() if d == pytest.approx(wang, rel=0.1)]
    assert len(into_stream) == 4, "two in each block"
    others = [d for name, d in deviations.items() if name not in into_stream]
    assert others == pytest.approx([small] * len(others), rel=0.1)
    plain = random_model(config, 7)
    for name, parameter in plain.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, model.get_parameter(name)), name


def test_the_seed_decides_the_weights() -> None:
    config = small_model("llama").config
    first, again, other = (random_model(config, seed, "small-wang") for seed in (1, 1, 2))
    weight = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(first.get_parameter(weight), again.get_parameter(weight))
    assert not torch.equal(first.get_parameter(weight), other.get_parameter(weight))


@pytest.mark.parametrize("architecture", ["mamba", "ctrl", "rwkv"])
def test_an_architecture_of_other_names_is_refused(architecture: str) -> None:
    """Before any compute, and without weights."""
    spec = ModelSpec(architecture=architecture, init="small-wang")
    with pytest.raises(InputError) as caught:
        model_config(spec, 50, 0, 16)
    assert caught.value.code == "init-unsupported"


def test_a_stored_model_has_its_weights() -> None:
    with pytest.raises(ValidationError, match="init goes with architecture"):
        ModelSpec.model_validate({"path": "base", "init": "small-wang"})
