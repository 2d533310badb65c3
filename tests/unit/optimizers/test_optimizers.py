"""Optimizers: their formulas, what a run file says of them, and what refuses a change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from perennial.config import load_run
from perennial.config.training import TrainingSpec
from perennial.errors import InputError
from perennial.optimizers import (
    OPTIMIZERS,
    AbsentOptimizerConfig,
    AdamWConfig,
    AdEMAMixConfig,
    MuonConfig,
    check_same_optimizer,
)
from tests.support.tiny_run import tiny_run, write_run

SMALL = {"global_batch": 2, "micro_batch": 1}


def _spec(**training: Any) -> TrainingSpec:
    return TrainingSpec.model_validate(SMALL | training)


def _reference(config: AdEMAMixConfig, gradients: list[float], rate: float, decay: float) -> float:
    """The paper's algorithm 1 with its two schedulers, for one weight that starts at 1."""
    beta1, beta2, beta3 = config.betas
    weight, m1, m2, v = 1.0, 0.0, 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        alpha = min(t * config.alpha / config.alpha_warmup, config.alpha)
        ln1, ln3, share = math.log(beta1), math.log(beta3), t / config.beta3_warmup
        beta3_t = min(math.exp(ln1 * ln3 / ((1 - share) * ln3 + share * ln1)), beta3)
        if share >= 1:
            beta3_t = beta3
        m1 = beta1 * m1 + (1 - beta1) * gradient
        m2 = beta3_t * m2 + (1 - beta3_t) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        update = (m1 / (1 - beta1**t) + alpha * m2) / (
            math.sqrt(v / (1 - beta2**t)) + config.epsilon
        )
        weight -= rate * (update + decay * weight)
    return weight


def test_ademamix_is_the_papers_update_before_in_and_after_its_warm_ups() -> None:
    config = AdEMAMixConfig(kind="ademamix", alpha_warmup=10, beta3_warmup=20)
    gradients = [math.sin(3 * step) + 0.2 for step in range(40)]
    for steps in (1, 5, 15, 40):
        weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = config.build([{"params": [weight], "weight_decay": 0.1}], offloaded=False)
        for gradient in gradients[:steps]:
            optimizer.param_groups[0]["lr"] = 0.01
            weight.grad = torch.full_like(weight, gradient)
            optimizer.step()
        expected = _reference(config, gradients[:steps], 0.01, 0.1)
        assert weight.tolist() == pytest.approx([expected] * 3, rel=1e-12)
        state = optimizer.state[weight]
        assert set(state) == {"step", *config.state_tensors}
        assert int(state["step"]) == steps


def test_ademamix_without_its_slow_average_is_adamw() -> None:
    mixed = AdEMAMixConfig(kind="ademamix", betas=(0.9, 0.95, 0.999), alpha=0.0)
    weights = []
    for config in (mixed, AdamWConfig()):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))
        optimizer = config.build([{"params": [weight], "weight_decay": 0.1}], offloaded=False)
        for step in range(10):
            optimizer.param_groups[0]["lr"] = 0.01
            weight.grad = torch.cos(weight.detach() * step)
            optimizer.step()
        weights.append(weight.detach())
    mixed_weight, plain_weight = weights
    assert torch.allclose(mixed_weight, plain_weight, rtol=1e-9)


def test_the_warm_ups_rise_from_the_fast_averages_values() -> None:
    config = AdEMAMixConfig(kind="ademamix", alpha_warmup=100, beta3_warmup=100)
    assert config.alpha_at(50) == config.alpha / 2
    assert config.alpha_at(100) == config.alpha_at(1000) == config.alpha
    betas = [config.beta3_at(step) for step in range(1, 101)]
    assert betas == sorted(betas)
    assert config.betas[0] < betas[0] < betas[-1] == config.betas[2]
    half_lives = [math.log(0.5) / math.log(beta) for beta in betas]
    assert half_lives[49] == pytest.approx((half_lives[0] + half_lives[98]) / 2)
    assert AdEMAMixConfig(kind="ademamix", beta3_warmup=0).beta3_at(1) == 0.9999


@pytest.mark.parametrize("kind", [k for k in OPTIMIZERS if not OPTIMIZERS[k].whole_matrices])
def test_an_update_is_elementwise_so_that_any_division_of_the_weights_steps_alike(
    kind: str,
) -> None:
    config = OPTIMIZERS[kind].model_validate({"kind": kind})
    start = torch.randn(12, generator=torch.manual_seed(0))
    gradients = [torch.randn(12, generator=torch.manual_seed(s)) for s in range(1, 5)]

    def trained(part: slice) -> torch.Tensor:
        weight = torch.nn.Parameter(start[part].clone())
        optimizer = config.build([{"params": [weight], "weight_decay": 0.1}], offloaded=False)
        for gradient in gradients:
            optimizer.param_groups[0]["lr"] = 0.01
            weight.grad = gradient[part].clone()
            optimizer.step()
        assert set(config.state_tensors) <= set(optimizer.state[weight])
        assert set(config.direction_tensors) < set(config.state_tensors)
        return weight.detach()

    whole = trained(slice(0, 12))
    assert torch.equal(whole, torch.cat([trained(slice(0, 5)), trained(slice(5, 12))]))


def _built_muon(
    hidden: list[torch.nn.Parameter], rest: list[torch.nn.Parameter], **keys: Any
) -> torch.optim.Optimizer:
    config = MuonConfig(kind="muon", **keys)
    groups = [
        {"params": hidden, "weight_decay": 0.1, "hidden": True},
        {"params": rest, "weight_decay": 0.0, "hidden": False},
    ]
    return config.build(groups, offloaded=False)


def test_muon_steps_hidden_matrices_as_torchs_muon_and_the_rest_as_torchs_adamw() -> None:
    start = [torch.randn(24, 8, generator=torch.manual_seed(s)) for s in range(2)]
    matrix, table = map(torch.nn.Parameter, (tensor.clone() for tensor in start))
    alone, table_alone = map(torch.nn.Parameter, (tensor.clone() for tensor in start))
    keys = {"momentum": 0.8, "nesterov": False, "newton_schulz_steps": 4, "betas": (0.7, 0.8)}
    optimizer = _built_muon([matrix], [table], **keys)
    muon = torch.optim.Muon(
        [alone], momentum=0.8, nesterov=False, ns_steps=4, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW([table_alone], betas=(0.7, 0.8), eps=1e-8, weight_decay=0.0)
    for step in range(5):
        for group in (*optimizer.param_groups, *muon.param_groups, *adamw.param_groups):
            group["lr"] = 0.01 * (step + 1)
        for parameter in (matrix, alone, table, table_alone):
            parameter.grad = torch.cos(parameter.detach() * step)
        for each in (optimizer, muon, adamw):
            each.step()
    assert torch.equal(matrix, alone)
    assert torch.equal(table, table_alone)
    for parameter, hidden in ((matrix, True), (table, False)):
        state = optimizer.state[parameter]
        assert set(state) == {"step", *MuonConfig.tensors_of(hidden=hidden)}
        assert int(state["step"]) == 5


def test_a_weight_without_a_gradient_stays_and_counts_no_step() -> None:
    matrix, table = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = _built_muon([matrix], [table])
    assert optimizer.step(lambda: 0.5) == 0.5
    assert not optimizer.state
    assert torch.equal(matrix, torch.ones(4, 4))


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_every_parameter_has_some_of_the_state_and_together_they_have_all(kind: str) -> None:
    config = OPTIMIZERS[kind]
    parts = [config.tensors_of(hidden=hidden) for hidden in (False, True)]
    assert {*parts[0], *parts[1]} == set(config.state_tensors)
    assert config.state_bytes(hidden=True) <= config.state_bytes()
    assert set(config.direction_tensors) < set(config.state_tensors)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "zero_stage 1 with optimizer muon is refused.*; set zero_stage to 0, or use .* adamw"),
        ({"zero_stage": 3}, "zero_stage 3 with optimizer muon is refused"),
        (
            {"zero_stage": 3, "cpu_offload": "weights"},
            "cpu_offload weights with optimizer muon is refused.*remove cpu_offload",
        ),
        ({"cpu_offload": "optimizer", "zero_stage": 0}, "with optimizer muon is refused"),
        (
            {"zero_stage": 0, "tensor_parallel": 2, "workers": 2},
            "tensor_parallel 2 with optimizer muon is refused.*set tensor_parallel to 1",
        ),
    ],
)
def test_an_optimizer_of_whole_matrices_is_refused_where_they_are_divided(
    settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        _spec(optimizer={"kind": "muon"}, **settings)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_optimizer_of_whole_matrices_is_read_where_they_are_whole(precision: str) -> None:
    spec = _spec(optimizer={"kind": "muon", "momentum": 0.9}, zero_stage=0, precision=precision)
    assert spec.optimizer_config == MuonConfig(kind="muon", momentum=0.9)
    assert TrainingSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_flat_keys_mean_adamw_and_are_stored_as_before() -> None:
    spec = _spec(betas=[0.8, 0.9], weight_decay=0.2)
    assert spec.optimizer_config == AdamWConfig(betas=(0.8, 0.9), weight_decay=0.2)
    dump = spec.model_dump(mode="json")
    assert "optimizer" not in dump
    assert dump["betas"] == [0.8, 0.9]
    assert TrainingSpec.model_validate(dump) == spec


def test_a_block_is_stored_instead_of_the_flat_keys() -> None:
    spec = _spec(optimizer={"kind": "ademamix", "alpha": 8})
    dump = spec.model_dump(mode="json")
    assert {"betas", "epsilon", "weight_decay"}.isdisjoint(dump)
    assert dump["optimizer"]["alpha"] == 8
    again = TrainingSpec.model_validate(dump)
    assert again == spec
    assert again.optimizer_config == AdEMAMixConfig(kind="ademamix", alpha=8)
    assert _spec(optimizer={"epsilon": 1e-6}).optimizer_config == AdamWConfig(epsilon=1e-6)


@pytest.mark.parametrize("key", ["betas", "epsilon", "weight_decay"])
def test_a_flat_key_beside_a_block_is_refused_by_name(tmp_path: Path, key: str) -> None:
    document = tiny_run(tmp_path)
    document["training"] |= {
        "optimizer": {"kind": "ademamix"},
        key: [0.9, 0.95] if key == "betas" else 0.1,
    }
    with pytest.raises(InputError) as refused:
        load_run(write_run(tmp_path, document))
    assert (refused.value.field, refused.value.code) == ("training", "invalid-section")
    assert refused.value.problem.startswith(key)


def test_a_base_s_flat_keys_are_forgotten_with_null(tmp_path: Path) -> None:
    document = tiny_run(tmp_path)
    document["training"]["betas"] = [0.8, 0.9]
    base = write_run(tmp_path, document)
    top = tmp_path / "top.yaml"
    top.write_text(
        f"base: {base}\ntraining:\n  betas: null\n  optimizer: {{kind: ademamix, alpha: 3}}\n"
    )
    config = load_run(top).training.optimizer_config
    assert config == AdEMAMixConfig(kind="ademamix", alpha=3)


def test_an_unknown_optimizer_is_refused_and_a_stored_one_stands_in(tmp_path: Path) -> None:
    document = tiny_run(tmp_path)
    document["training"]["optimizer"] = {"kind": "lion"}
    with pytest.raises(InputError) as refused:
        load_run(write_run(tmp_path, document))
    assert refused.value.field == "training.optimizer.kind"
    assert refused.value.code == "plugin-missing"
    block = {"kind": "lion", "rate": 3}
    stored = TrainingSpec.model_validate(
        SMALL | {"optimizer": block}, context={"stored": True}
    ).optimizer_config
    assert isinstance(stored, AbsentOptimizerConfig)
    assert stored.kind == "lion"
    with pytest.raises(InputError) as absent:
        stored.build([], offloaded=False)
    assert absent.value.code == "plugin-missing"


def test_null_for_the_block_is_the_default() -> None:
    assert _spec(optimizer=None).optimizer_config == AdamWConfig()
    with pytest.raises(ValidationError):
        _spec(optimizer={"kind": "adamw", "alpha": 1})


@pytest.mark.parametrize(
    ("stored", "wanted", "fits"),
    [
        (None, "adamw", True),
        ("adamw", "adamw", True),
        ("ademamix", "ademamix", True),
        (None, "ademamix", False),
        ("ademamix", "adamw", False),
    ],
)
def test_the_state_of_another_optimizer_is_refused(
    stored: str | None, wanted: str, fits: bool
) -> None:
    if fits:
        check_same_optimizer("checkpoints/a/00000005", stored, wanted)
        return
    with pytest.raises(InputError) as refused:
        check_same_optimizer("checkpoints/a/00000005", stored, wanted)
    assert refused.value.code == "optimizer-changed"
    assert wanted in refused.value.problem
    assert (stored or "adamw") in refused.value.problem
