"""The real DeepSpeed engine: its optimizer state outlives the number of workers that wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from perennial.spec.run import ModelSpec, TrainingSpec
from tests.processes import run_on

GLOBAL_BATCH = 4
long = pytest.mark.long


def _spec(zero_stage: int, precision: str) -> TrainingSpec:
    return TrainingSpec.model_validate(
        {
            "global_batch": GLOBAL_BATCH,
            "micro_batch": 1,
            "zero_stage": zero_stage,
            "precision": precision,
        }
    )


def _train(folder: Path, zero_stage: int, precision: str, first: int, last: int) -> None:
    """Steps first..last on every rank; from and to `folder`, with the whole state for comparing."""
    import torch.distributed as dist

    from perennial.mixture.batches import rank_rows
    from perennial.training.engine import build_engine, gather_weights, set_eta
    from perennial.training.model import model_config, random_model
    from perennial.training.optimizer_state import load_optimizer, save_optimizer
    from perennial.training.share import micro_batches

    rank, world = dist.get_rank(), dist.get_world_size()
    config = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    model_spec = ModelSpec(architecture="gpt_neox", config=config | {"num_attention_heads": 2})
    model = random_model(model_config(model_spec, 64, 0, 8), seed=1)
    if first:
        model.load_state_dict(load_file(folder / f"model-{first}.safetensors"))
    engine = build_engine(model, _spec(zero_stage, precision), GLOBAL_BATCH, world)
    if first:
        load_optimizer(engine, folder / f"optimizer-{first}", steps=first)
    for step in range(first, last):
        batch = torch.randint(0, 64, (GLOBAL_BATCH, 8), generator=torch.manual_seed(step))
        mine = batch[rank_rows(GLOBAL_BATCH, rank, world)]
        set_eta(engine, 1e-2)
        for part in micro_batches(GLOBAL_BATCH, 1, rank, world):
            ids = mine[part.rows]
            engine.backward(engine(input_ids=ids, labels=ids).loss * part.weight)
            engine.step()
    (folder / f"optimizer-{last}").mkdir(exist_ok=True)
    name = f"optimizer-{rank:02d}-of-{world:02d}.safetensors"
    assert save_optimizer(engine, folder / f"optimizer-{last}" / name) == last
    whole = _whole_state(engine)
    weights = gather_weights(engine)
    assert (weights is None) == (rank != 0)
    if weights is not None:
        save_file(whole, folder / f"whole-{first}-{last}-{world}.safetensors")
        save_file(weights, folder / f"model-{last}.safetensors")


def _whole_state(engine: Any) -> dict[str, torch.Tensor]:
    """Moments, fp32 weights and a probe's loss as DeepSpeed itself tells them, on every rank."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    from perennial.training.optimizer_state import MOMENTS

    stage = engine.zero_optimization_stage()
    if stage in (1, 2):
        # DeepSpeed 0.19.8 links its own view of the moments after the first group's first step,
        # when later groups have none yet; link it again, to compare with what it says.
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        if stage == 0:
            owner = _stepped_copy(engine, parameter)
            state = getattr(engine.optimizer, "optimizer", engine.optimizer).state[owner]
            told = {moment: state[moment] for moment in MOMENTS} | {"weight": owner.detach()}
        else:
            told = {m: safe_get_full_optimizer_state(parameter, m) for m in MOMENTS}
            told["weight"] = safe_get_full_fp32_param(parameter)
        whole |= {f"{name}|{kind}": tensor.reshape(-1).clone() for kind, tensor in told.items()}
    probe = torch.arange(64).reshape(8, 8)
    with torch.no_grad():
        whole["loss"] = engine.module(input_ids=probe, labels=probe).loss.float()
    return whole


def _stepped_copy(engine: Any, parameter: torch.Tensor) -> torch.Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    zero = engine.optimizer
    for group, copies in zip(zero.fp16_groups, zero.fp32_groups, strict=True):
        for each, copy in zip(group, copies, strict=True):
            if each is parameter:
                return copy  # type: ignore[no-any-return]
    raise LookupError


def _grid() -> list[Any]:
    """Every stage and precision; the quick suite takes the ones with a layout of their own."""
    quick = {(0, "bf16"), (2, "fp32"), (3, "bf16")}
    return [
        pytest.param(stage, precision, marks=() if (stage, precision) in quick else long)
        for precision in ("fp32", "bf16")
        for stage in (0, 1, 2, 3)
    ]


@pytest.mark.parametrize(("zero_stage", "precision"), _grid())
def test_i9_state_written_by_two_workers_is_read_by_one_and_by_two(
    tmp_path: Path, zero_stage: int, precision: str
) -> None:
    run_on(2, _train, tmp_path, zero_stage, precision, 0, 3)
    run_on(2, _train, tmp_path, zero_stage, precision, 3, 3)
    run_on(1, _train, tmp_path, zero_stage, precision, 3, 3)
    written = load_file(tmp_path / "whole-0-3-2.safetensors")
    assert all(tensor.abs().sum() > 0 for tensor in written.values())
    for world in (2, 1):
        read = load_file(tmp_path / f"whole-3-3-{world}.safetensors")
        assert set(read) == set(written)
        for name, tensor in written.items():
            assert torch.equal(tensor, read[name]), (world, name)


@pytest.mark.parametrize("zero_stage", [1, *(pytest.param(z, marks=long) for z in (0, 2, 3))])
def test_i9_training_goes_on_alike_on_a_world_size_that_does_not_divide_the_batch(
    tmp_path: Path, zero_stage: int
) -> None:
    """3 steps on three workers and 2 on one give the loss of 5 steps on one within 1e-4."""
    (tmp_path / "resized").mkdir()
    (tmp_path / "straight").mkdir()
    run_on(3, _train, tmp_path / "resized", zero_stage, "fp32", 0, 3)
    run_on(1, _train, tmp_path / "resized", zero_stage, "fp32", 3, 5)
    run_on(1, _train, tmp_path / "straight", zero_stage, "fp32", 0, 5)
    resized = load_file(tmp_path / "resized" / "whole-3-5-1.safetensors")["loss"]
    straight = load_file(tmp_path / "straight" / "whole-0-5-1.safetensors")["loss"]
    earlier = load_file(tmp_path / "resized" / "whole-0-3-3.safetensors")["loss"]
    assert abs(resized - straight) < 1e-4
    assert abs(resized - earlier) > 1e-3


def test_a_missing_piece_of_the_optimizer_is_an_error(tmp_path: Path) -> None:
    run_on(2, _train, tmp_path, 1, "fp32", 0, 1)
    next((tmp_path / "optimizer-1").glob("optimizer-01-*")).unlink()
    with pytest.raises(Exception, match="the checkpoint lacks"):
        run_on(1, _train, tmp_path, 1, "fp32", 1, 1)
