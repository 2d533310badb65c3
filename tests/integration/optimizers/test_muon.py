"""Muon in the real engine: which matrices it steps, how far, and what a join keeps of its state."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from perennial.config.run import OptimizerAtJoin
from perennial.optimizers import AdEMAMixConfig, MuonConfig
from perennial.training.checkpoint.resume import load_state
from perennial.training.checkpoint.tensors import write_tensors
from perennial.training.engine.deepspeed_internals import inner_optimizer, owned_shards
from perennial.training.engine.engine import (
    _decay_groups,
    _parameter_groups,
    loss_of,
    set_eta,
)
from perennial.training.engine.optimizer_state import optimizer_state
from perennial.training.model.matrices import hidden_matrices
from tests.support.engines import END_OF_DOCUMENT, engine_of_one, training_spec
from tests.support.small_models import small_model

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ETA = 1e-2


def _engine(precision: str = "fp32", architecture: str = "llama", **settings: Any) -> Any:
    optimizer = {"kind": "muon"} | settings
    spec = training_spec(
        zero_stage=0, precision=precision, optimizer=optimizer, gradient_clip=1e9, micro_batch=2
    )
    return engine_of_one(small_model(architecture), spec), spec


def _step(engine: Any, spec: Any, seed: int) -> dict[str, torch.Tensor]:
    """Take one step; return the gradients by parameter, in fp32."""
    ids = torch.randint(4, 50, (2, 16), generator=torch.manual_seed(seed))
    set_eta(engine, ETA)
    engine.backward(loss_of(engine, ids, spec, END_OF_DOCUMENT))
    gradients = {
        name: parameter.grad.float().clone() for name, parameter in engine.module.named_parameters()
    }
    engine.step()
    return gradients


def _stepped(engine: Any) -> dict[str, torch.Tensor]:
    """The fp32 weights that the optimizer steps."""
    return {shard.parameter: shard.owner.detach().clone() for shard in owned_shards(engine)}


def _hidden_names(model: Any) -> set[str]:
    hidden = {id(parameter) for parameter in hidden_matrices(model)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in hidden}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_hidden_matrices_move_along_an_orthogonal_one_with_the_rms_of_an_adamw_update(
    group_of_one: None, precision: str
) -> None:
    engine, spec = _engine(precision, weight_decay=0.5)
    hidden = _hidden_names(engine.module)
    assert len(hidden) == 2 * 7, "four matrices of attention and three of the MLP in each layer"
    for step in range(3):
        before = _stepped(engine)
        _step(engine, spec, step)
        after = _stepped(engine)
        for name in hidden:
            rows, columns = before[name].shape
            moved = (before[name] * (1 - ETA * 0.5) - after[name]) / ETA
            values = torch.linalg.svdvals(moved / (0.2 * math.sqrt(max(rows, columns))))
            # A matrix of two key-value heads on so few tokens may lack directions; most are full.
            assert values.max() < 1.5, name
            assert values.median() > 0.5, name
            assert moved.square().mean().sqrt() == pytest.approx(0.2, rel=0.35), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_embeddings_head_and_norms_move_as_torchs_adamw_moves_them(
    group_of_one: None, precision: str
) -> None:
    engine, spec = _engine(precision, weight_decay=0.5, betas=[0.8, 0.9], epsilon=1e-6)
    hidden = _hidden_names(engine.module)
    alone = {
        name: torch.nn.Parameter(tensor)
        for name, tensor in _stepped(engine).items()
        if name not in hidden
    }
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} < set(alone)
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in alone.values() if p.ndim == 2], "weight_decay": 0.5},
            {"params": [p for p in alone.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=ETA,
        betas=(0.8, 0.9),
        eps=1e-6,
    )
    for step in range(3):
        gradients = _step(engine, spec, step)
        for name, parameter in alone.items():
            parameter.grad = gradients[name]
        adamw.step()
    for name, tensor in _stepped(engine).items():
        if name in alone:
            assert torch.equal(tensor, alone[name].detach()), name


@pytest.mark.parametrize(
    ("architecture", "settings", "hidden", "others"),
    [
        (
            "gpt2",
            {},
            {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"},
            {"transformer.wte.weight", "transformer.wpe.weight"},
        ),
        (
            "mixtral",
            EXPERTS,
            {"self_attn.q_proj.weight", "mlp.gate.weight"},
            {"mlp.experts.gate_up_proj", "mlp.experts.down_proj", "lm_head.weight"},
        ),
        (
            "gpt_oss",
            EXPERTS,
            {"self_attn.q_proj.weight", "mlp.router.weight"},
            {"mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias"},
        ),
        ("mamba", {}, {"mixer.in_proj.weight"}, {"mixer.A_log", "mixer.conv1d.weight"}),
        ("llama", {"tie_word_embeddings": True}, {"mlp.up_proj.weight"}, {"embed_tokens.weight"}),
    ],
)
def test_groups_say_which_matrices_are_hidden_and_decay_as_before(
    architecture: str, settings: dict[str, Any], hidden: set[str], others: set[str]
) -> None:
    model = small_model(architecture, **settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = _parameter_groups(model, MuonConfig(kind="muon"))
    assert [(g["hidden"], g["weight_decay"]) for g in groups] == [
        (True, 0.1),
        (False, 0.1),
        (False, 0.0),
    ]
    by_group = [{names[id(p)] for p in group["params"]} for group in groups]
    assert set.union(*by_group) == set(names.values())
    assert sum(map(len, by_group)) == len(names)
    for ending in hidden:
        assert any(name.endswith(ending) for name in by_group[0]), ending
    for ending in others:
        assert any(name.endswith(ending) for name in by_group[1] | by_group[2]), ending
        assert not any(name.endswith(ending) for name in by_group[0]), ending
    decayed, spared = ({names[id(p)] for p in g["params"]} for g in _decay_groups(model, 0.1))
    assert (by_group[0] | by_group[1], by_group[2]) == (decayed, spared)


def test_the_groups_of_an_elementwise_optimizer_are_the_two_that_they_were() -> None:
    model = small_model("llama")
    groups = _parameter_groups(model, AdEMAMixConfig(kind="ademamix"))
    assert [list(group) for group in groups] == [["params", "weight_decay"]] * 2
    expected = _decay_groups(model, 0.1)
    for group, same in zip(groups, expected, strict=True):
        assert list(map(id, group["params"])) == list(map(id, same["params"]))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("join", "kept"),
    [
        ("reset", set()),
        ("keep-second-moment", {"exp_avg_sq"}),
        ("keep", {"momentum_buffer", "exp_avg", "exp_avg_sq"}),
    ],
)
def test_a_stage_begins_with_the_state_that_its_join_keeps(
    group_of_one: None, tmp_path: Path, precision: str, join: OptimizerAtJoin, kept: set[str]
) -> None:
    engine, spec = _engine(precision)
    for step in range(3):
        _step(engine, spec, step)
    tensors, steps = optimizer_state(engine, spec.optimizer_config)
    assert steps == 3
    write_tensors(tensors, tmp_path / "optimizer-00-of-01.safetensors")
    hidden = _hidden_names(engine.module)
    kinds: dict[str, set[str]] = defaultdict(set)
    for key in tensors:
        parameter, _, kind = key.split("|")
        kinds[kind].add(parameter)
    every = {name for name, _ in engine.module.named_parameters()}
    assert kinds["momentum_buffer"] == hidden
    assert kinds["exp_avg"] == kinds["exp_avg_sq"] == every - hidden
    assert kinds["master"] == (every if precision == "bf16" else set())
    weights = _stepped(engine)
    start: Any = SimpleNamespace(
        loss_scale=None,
        resumed=False,
        exact=precision == "bf16",
        folder=None,
        optimizer_steps=None if join == "reset" else steps,
        optimizer_files=[tmp_path / "optimizer-00-of-01.safetensors"],
    )
    job: Any = SimpleNamespace(training=spec, optimizer=join, grown_from=None)
    inner_optimizer(engine).state.clear()
    load_state(engine, job, start)
    now, begun = optimizer_state(engine, spec.optimizer_config)
    assert begun == (0 if join == "reset" else 3)
    for key, tensor in now.items():
        kind = key.split("|")[-1]
        if kind in {*kept, "master"}:
            assert torch.equal(tensor, tensors[key]), key
        else:
            assert not tensor.any(), key
    for name, tensor in _stepped(engine).items():
        assert torch.equal(tensor, weights[name]), name
    _step(engine, spec, 3)
    assert optimizer_state(engine, spec.optimizer_config)[1] == begun + 1
