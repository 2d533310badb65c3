"""Gradients and steps of DeepSpeed's engines, by ZeRO stage and number format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from perennial.config.spikes import SpikesSpec
from perennial.training.engine.engine import gradient_norm, loss_of, set_eta
from perennial.training.engine.optimizer_state import optimizer_state
from perennial.training.spikes.detector import SpikeWatch
from tests.support.engines import (
    END_OF_DOCUMENT,
    engine_of_one,
    one_step,
    stepped_weights,
    training_spec,
)
from tests.support.gloo import run_on
from tests.support.small_models import small_model

MICRO_BATCHES = 64
IDS = torch.randint(0, 50, (MICRO_BATCHES, 16), generator=torch.Generator().manual_seed(1))
SUMS_IN_BF16 = {"data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16"}


@pytest.fixture(scope="module")
def exact_step(group_of_one: None) -> torch.Tensor:
    """The step of 64 micro batches in fp32."""
    return one_step(small_model("llama"), IDS, {"micro_batch": 1})[1]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_of_bf16_are_summed_in_fp32(exact_step: torch.Tensor, stage: int) -> None:
    settings = {"micro_batch": 1, "precision": "bf16", "zero_stage": stage}

    def error(**more: Any) -> float:
        _, step = one_step(small_model("llama"), IDS, settings | more)
        return float((step - exact_step).norm() / exact_step.norm())

    in_fp32 = error()
    assert in_fp32 < 0.01
    if stage == 1:  # ZeRO 0 sums in fp32 whatever is asked
        assert in_fp32 < 0.7 * error(deepspeed=SUMS_IN_BF16)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_is_a_problem_and_changes_nothing(
    group_of_one: None, stage: int
) -> None:
    """DeepSpeed leaves such a step of bf16 out without a word."""
    spec = training_spec(precision="bf16", zero_stage=stage)
    engine = engine_of_one(small_model("llama"), spec)

    def take_step(factor: float) -> float:
        set_eta(engine, 1e-2)
        engine.backward(loss_of(engine, IDS[:2], spec, END_OF_DOCUMENT) * factor)
        norm = gradient_norm(engine)
        engine.step()
        return float(engine.get_global_grad_norm() if norm is None else norm)

    watch = SpikeWatch(SpikesSpec())
    assert watch.judge(4.0, take_step(1.0)) is None
    tensors, steps = optimizer_state(engine, spec.optimizer_config)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    problem = watch.judge(4.0, take_step(float("nan")))
    assert problem is not None
    assert not problem.finite
    tensors, steps_after = optimizer_state(engine, spec.optimizer_config)
    assert steps_after == steps
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())
    assert watch.judge(4.0, take_step(1.0)) is None


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32"), (0, "bf16")],
)
def test_the_gradient_is_clipped_to_the_norm_of_the_run_file(
    group_of_one: None, stage: int, precision: str
) -> None:
    """Whatever DeepSpeed's own default is: the step has the length of the clip."""
    settings = {"zero_stage": stage, "precision": precision, "gradient_clip": 0.01}
    _, step = one_step(small_model("llama"), IDS[:2], settings)
    # AdamW's first step is (1 - beta_1) / (1 - beta_1) of the gradient.
    assert step.norm().item() == pytest.approx(0.01, rel=2e-2)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_base_in_bf16_gets_fp32_weights_to_step(group_of_one: None, stage: int) -> None:
    """Small steps add up that bf16 would round away."""
    model = small_model("llama").bfloat16()
    spec = training_spec(precision="bf16", zero_stage=stage, weight_decay=0.0)
    engine = engine_of_one(model, spec)
    before = stepped_weights(engine)
    for _ in range(4):
        set_eta(engine, 1e-6)
        engine.backward(loss_of(engine, IDS[:2], spec, END_OF_DOCUMENT))
        engine.step()
    moved = (stepped_weights(engine) - before).abs()
    assert 2e-6 < moved.max() < 5e-6


def _tied_step(folder: Path) -> None:
    """Weights after a step of two ranks at ZeRO 0 and 2, with what shares and recomputes them."""
    import torch.distributed as dist

    from perennial.training.engine.engine import build_engine, gather_weights

    rank = dist.get_rank()
    for stage in (0, 2):
        spec = training_spec(
            zero_stage=stage, loss="chunked", activation_checkpointing=True, micro_batch=1
        )
        model = small_model("llama", tie_word_embeddings=True)
        engine = build_engine(model, spec, 2, 2, END_OF_DOCUMENT)
        set_eta(engine, 1e-2)
        engine.backward(loss_of(engine, IDS[rank : rank + 1], spec, END_OF_DOCUMENT))
        engine.step()
        weights = gather_weights(engine)
        if rank == 0:
            save_file({name: w.clone() for name, w in weights.items()}, folder / f"{stage}.st")


def test_two_ranks_step_tied_weights_alike_at_zero_0_and_2(tmp_path: Path) -> None:
    run_on(2, _tied_step, tmp_path)
    weights = [load_file(tmp_path / f"{stage}.st") for stage in (0, 2)]
    assert "lm_head.weight" not in weights[0]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], rtol=0, atol=1e-5), name


def test_a_rotary_share_survives_a_checkpoint(tmp_path: Path) -> None:
    """transformers 5 keeps GPT-NeoX's rotary_pct under another name."""
    from perennial.training.model.config import stored_model

    model = small_model("gpt_neox", rotary_pct=0.5, hidden_size=32).eval()
    model.save_pretrained(tmp_path)
    again = stored_model(tmp_path).eval()
    with torch.no_grad():
        ids = IDS[:2]
        assert torch.equal(model(ids).logits, again(ids).logits)
        whole = small_model("gpt_neox", rotary_pct=1.0, hidden_size=32).eval()
        assert not torch.equal(model(ids).logits, whole(ids).logits)
