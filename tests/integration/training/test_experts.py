"""Mixture-of-experts models: their balance is trained apart from the loss that is reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perennial.errors import InputError
from perennial.training.engine.engine import _decay_groups, losses_of
from tests.support.engines import END_OF_DOCUMENT, engine_of_one, one_step, training_spec
from tests.support.small_models import small_model

IDS = torch.randint(4, 50, (2, 16), generator=torch.Generator().manual_seed(1))
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def _mixtral(**settings: Any) -> Any:
    return small_model("mixtral", **EXPERTS | settings)


@pytest.mark.parametrize("loss", ["full", "chunked"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_the_balance_is_in_the_objective_and_not_in_the_loss(
    group_of_one: None, recomputed: bool, loss: str
) -> None:
    spec = training_spec(balance_loss=0.5, activation_checkpointing=recomputed, loss=loss)
    engine = engine_of_one(_mixtral(), spec)
    losses = losses_of(engine, IDS, spec, END_OF_DOCUMENT)
    plain = _mixtral()(input_ids=IDS, labels=IDS, use_cache=False).loss
    assert losses.loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert losses.balance is not None
    assert losses.balance.item() >= 1
    assert losses.objective.item() == pytest.approx(
        losses.loss.item() + 0.5 * losses.balance.item(), rel=1e-5
    )
    step, other = (
        one_step(_mixtral(), IDS, {"balance_loss": weight, "loss": loss})[1] for weight in (0.5, 0)
    )
    assert not torch.equal(step, other)


def test_by_default_its_weight_is_that_of_the_models_configuration(group_of_one: None) -> None:
    spec = training_spec()
    engine = engine_of_one(_mixtral(router_aux_loss_coef=0.25), spec)
    losses = losses_of(engine, IDS, spec, END_OF_DOCUMENT)
    assert losses.balance is not None
    added = losses.objective.item() - losses.loss.item()
    assert added == pytest.approx(0.25 * losses.balance.item(), rel=1e-3)


def test_a_weight_of_zero_turns_it_off(group_of_one: None) -> None:
    spec = training_spec(balance_loss=0.0)
    losses = losses_of(engine_of_one(_mixtral(), spec), IDS, spec, END_OF_DOCUMENT)
    assert losses.balance is None
    assert losses.objective is losses.loss


def test_a_model_without_experts_is_refused_by_name(group_of_one: None) -> None:
    with pytest.raises(InputError, match=r"training\.balance_loss: LlamaForCausalLM has no"):
        engine_of_one(small_model("llama"), training_spec(balance_loss=0.1))


@pytest.mark.parametrize(
    ("architecture", "settings", "spared"),
    [
        ("gpt_oss", EXPERTS, "mlp.experts.gate_up_proj_bias"),
        ("mamba", {}, "mixer.A_log"),
        ("mixtral", EXPERTS, "input_layernorm.weight"),
    ],
)
def test_decay_spares_biases_norms_and_marked_parameters(
    architecture: str, settings: dict[str, Any], spared: str
) -> None:
    """A bias of several experts has two dimensions, and state space models mark parameters."""
    model = small_model(architecture, **settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = (
        {names[id(parameter)] for parameter in group["params"]}
        for group in _decay_groups(model, 0.1)
    )
    assert any(name.endswith(spared) for name in kept), kept
    assert not any(name.endswith(spared) for name in decayed)
    assert any("embed" in name for name in decayed)
