"""Workers that compute one model together: like an undivided one, and stored for any layout."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from perennial.training.kit.state_files import WholeState
from perennial.training.model.tensor_parallel import DIVISIBLE
from tests.support.engines import END_OF_DOCUMENT, training_spec
from tests.support.gloo import run_on
from tests.support.small_models import small_model

GLOBAL_BATCH, LENGTH, VOCABULARY = 4, 8, 51
"""the vocabulary does not divide by two"""
SETTINGS: dict[str, Any] = {
    "global_batch": GLOBAL_BATCH,
    "micro_batch": 2,
    "gradient_clip": 0.2,
    "epsilon": 1e-3,
}
CELLS: dict[str, dict[str, Any]] = {
    **{kind: {"zero_stage": 1} for kind in DIVISIBLE},
    "bf16": {"zero_stage": 1, "precision": "bf16"},
    "zero-0": {"zero_stage": 0},
    "zero-2": {"zero_stage": 2},
    "bf16-zero-2": {"zero_stage": 2, "precision": "bf16"},
    "offload": {"zero_stage": 2, "cpu_offload": "optimizer"},
    "features": {"zero_stage": 1, "mask": "document", "activation_checkpointing": True},
}
QUICK = {name: CELLS[name] for name in ("gpt_neox", "llama", "bf16")}
LONG = {name: settings for name, settings in CELLS.items() if name not in QUICK}
LAYOUTS = ((1, 2), (2, 1), (2, 2))
"""workers that read rows of their own, and workers that compute one model"""


def _model(cell: str) -> Any:
    kind = cell if cell in DIVISIBLE else "gpt_neox"
    more: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    if cell == "features":
        more["hidden_dropout"] = 0.1
    return small_model(kind, vocab_size=VOCABULARY, tie_word_embeddings=False, **more)


def _visit(
    folder: Path,
    cell: str,
    settings: dict[str, Any],
    tensor: int,
    source: str,
    target: str,
    steps: range,
) -> None:
    """Load what `source` has, take steps, and write it to `target`, on every rank of a layout."""
    import torch.distributed as dist

    from perennial.mixture.batches import slice_rank_rows
    from perennial.training.checkpoint.reader import nearest_first
    from perennial.training.checkpoint.tensors import write_tensors
    from perennial.training.engine.deepspeed_internals import release_engine
    from perennial.training.engine.engine import (
        build_engine,
        gather_weights,
        gradient_norm,
        loss_of,
        set_eta,
    )
    from perennial.training.engine.grid import Grid
    from perennial.training.engine.microbatch import micro_batches, seed_dropout
    from perennial.training.engine.optimizer_state import load_optimizer, optimizer_state
    from perennial.training.engine.scalar_allreduce import StepReduction, Votes

    grid = Grid.here(tensor)
    model = _model(cell)
    if source:
        model.load_state_dict(load_file(folder / source / "model.safetensors"))
    spec = training_spec(**SETTINGS | settings, workers=grid.world_size, tensor_parallel=tensor)
    engine = build_engine(model, spec, GLOBAL_BATCH, grid.world_size, END_OF_DOCUMENT)
    if source:
        files = sorted((folder / source).glob("optimizer-*"))
        order = nearest_first(len(files), grid.rank, grid.world_size)
        load_optimizer(engine, spec.optimizer_config, (files[i] for i in order), steps.start)
    reduction = StepReduction(engine.device, counts=grid.leads)
    rows = []
    for step in steps:
        batch = torch.randint(
            0, VOCABULARY, (GLOBAL_BATCH, LENGTH), generator=torch.manual_seed(step)
        )
        mine = batch[slice_rank_rows(GLOBAL_BATCH, grid.data_rank, grid.data_size)]
        set_eta(engine, 1e-2)
        seed_dropout(0, step, grid.data_rank)
        total = torch.zeros(())
        for part in micro_batches(GLOBAL_BATCH, spec.micro_batch, grid.data_rank, grid.data_size):
            loss = loss_of(engine, mine[part.rows], spec, END_OF_DOCUMENT)
            engine.backward(loss * part.weight)
            total += loss.detach().float() * part.sequences / GLOBAL_BATCH
            norm = gradient_norm(engine)
            engine.step()
        norm = engine.get_global_grad_norm() if norm is None else norm
        reduction.start({"loss": ("sum", total), "norm": ("max", float(norm))}, Votes())
        reduced = reduction.finish()
        assert reduced is not None
        rows.append(reduced.values)
    (folder / target).mkdir(exist_ok=True)
    tensors, _ = optimizer_state(engine, spec.optimizer_config)
    name = f"optimizer-{grid.rank:02d}-of-{grid.world_size:02d}.safetensors"
    write_tensors(tensors, folder / target / name)
    weights = gather_weights(engine, None if grid.rank == 0 else ())
    if grid.rank == 0:
        save_file(
            {n: w.contiguous() for n, w in weights.items()}, folder / target / "model.safetensors"
        )
        (folder / target / "rows.json").write_text(json.dumps(rows))
    release_engine(engine)
    dist.barrier()  # the next one reads what rank 0 wrote


def _straight(folder: Path, tensor: int, cells: dict[str, dict[str, Any]]) -> None:
    for cell, settings in cells.items():
        (folder / cell).mkdir(exist_ok=True)
        _visit(folder / cell, cell, settings, tensor, "", f"straight-{tensor}", range(3))
    if tensor > 1:
        with pytest.raises(RuntimeError, match="with 1 it takes new workers"):
            _visit(folder, "llama", {}, 1, "", "other", range(0))


def _through(folder: Path, tensor: int, stages: tuple[int, ...], source: str, target: str) -> None:
    """Read and write every ZeRO stage's state, and take a step from it with the next stage."""
    for stage in stages:
        place = folder / f"zero-{stage}"
        place.mkdir(exist_ok=True)
        steps = range(2, 2) if source else range(2)
        _visit(place, "llama", {"zero_stage": stage}, tensor, source, target, steps)
        other = {"zero_stage": (stage + 1) % 3}
        _visit(place, "llama", other, tensor, target, f"after-{target}", range(2, 3))


def _whole(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer's state of a checkpoint's files, whole."""
    (folder / "whole").mkdir(exist_ok=True)
    with WholeState(sorted(folder.glob("optimizer-*"))) as state:
        files = state.write(folder / "whole")
    tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    for file in files:
        tensors |= load_file(file)
    return tensors


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a cell, trained for three steps undivided and by two workers."""

    @functools.cache
    def trained(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        for tensor in (1, 2):
            run_on(tensor, _straight, folder, tensor, QUICK if kind == "quick" else LONG)
        return folder

    return trained


def _rows(folder: Path) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = json.loads((folder / "rows.json").read_text())
    return rows


@pytest.mark.parametrize(
    ("kind", "cell"),
    [("quick", name) for name in QUICK]
    + [pytest.param("long", name, marks=pytest.mark.long) for name in LONG],
)
def test_a_divided_model_trains_like_a_whole_one(
    straight: Callable[[str], Path], kind: str, cell: str
) -> None:
    one, two = (straight(kind) / cell / f"straight-{tensor}" for tensor in (1, 2))
    is_rounded = "bf16" in cell
    for whole, divided in zip(_rows(one), _rows(two), strict=True):
        assert divided["loss"] == pytest.approx(whole["loss"], rel=1e-4 if is_rounded else 1e-6)
        assert divided["norm"] == pytest.approx(whole["norm"], rel=2e-3 if is_rounded else 1e-5)
        assert whole["norm"] > 2 * SETTINGS["gradient_clip"], "nothing is clipped"
    expected, found = _whole(one), _whole(two)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        error = (found[name].float() - tensor.float()).norm() / tensor.float().norm()
        assert error < (3e-2 if is_rounded else 1e-5), (name, float(error))


@pytest.mark.parametrize(
    ("stages", "layouts"),
    [
        pytest.param((1,), LAYOUTS[:2], id="1x2 to 2x1"),
        pytest.param((0, 1, 2), LAYOUTS, id="1x2 to 2x1 to 2x2", marks=pytest.mark.long),
    ],
)
def test_i9_any_layout_reads_what_any_other_wrote(
    tmp_path: Path, stages: tuple[int, ...], layouts: tuple[tuple[int, int], ...]
) -> None:
    """One layout after the other holds the same bits.

    A step from there with another ZeRO stage has the same loss.
    """
    source = ""
    for number, (data, tensor) in enumerate(layouts):
        run_on(data * tensor, _through, tmp_path, tensor, stages, source, f"layout-{number}")
        source = f"layout-{number}"
    for stage in stages:
        place = tmp_path / f"zero-{stage}"
        written = _whole(place / "layout-0")
        assert all(tensor.any() for tensor in written.values())
        for number in range(1, len(layouts)):
            read = _whole(place / f"layout-{number}")
            assert set(read) == set(written)
            assert all(torch.equal(tensor, read[name]) for name, tensor in written.items())
        losses = [_rows(place / f"after-layout-{n}")[0]["loss"] for n in range(len(layouts))]
        assert max(losses) - min(losses) < 1e-5, losses


def _refused(folder: Path) -> None:
    import os

    import torch.distributed as dist

    from perennial.errors import InputError
    from perennial.training.engine.grid import Grid

    Grid.here(2).check_nodes()
    os.environ["NODE_RANK"] = os.environ["RANK"]
    Grid.here(1).check_nodes()
    with pytest.raises(InputError, match="workers 0 to 1 compute one model together") as raised:
        Grid.here(2).check_nodes()
    (folder / f"{dist.get_rank()}").write_text(raised.value.code)


def test_a_group_on_two_nodes_is_refused_on_every_rank(tmp_path: Path) -> None:
    run_on(2, _refused, tmp_path)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["tensor-group-split"] * 2
