"""Rows with padding: no loss, no gradient and no weight is taken of it, whatever computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perennial.training.engine.engine import losses_of, set_eta
from perennial.training.engine.grid import Grid
from perennial.training.engine.microbatch import micro_batches, weigh_targets
from perennial.training.model.features import find_padding
from tests.support.engines import END_OF_DOCUMENT as END
from tests.support.engines import engine_of_one, stepped_weights, training_spec
from tests.support.gloo import run_on
from tests.support.small_models import small_model

# Documents as a packer puts them into rows of 12; the last row has one token to predict.
ROWS = [
    [7, 8, END, 9, 10, 11, 12, END, END, END, END, END],
    [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, END],
    [20, 21, 22, END, 23, 24, 25, 26, 27, END, END, END],
    [30, END, END, END, END, END, END, END, END, END, END, END],
]
IDS = torch.tensor(ROWS)
BARE = [row[: 1 + max(i for i, t in enumerate(row) if t != END) + 1] for row in ROWS]


def _model(architecture: str, **settings: Any) -> Any:
    return small_model(architecture, **{"vocab_size": 40} | settings)


def _step(
    model: Any, settings: dict[str, Any], parts: list[tuple[torch.Tensor, Any, Any]]
) -> tuple[float, torch.Tensor]:
    """Loss of parts `(ids, factor, share)` of a batch, and the change of all weights by a step.

    The step is one along the gradient: AdamW with an epsilon that drowns its second moment.
    """
    optimizer = {"kind": "adamw", "epsilon": 1e3, "weight_decay": 0.0}
    spec = training_spec(global_batch=4, gradient_clip=1e6, optimizer=optimizer, **settings)
    engine = engine_of_one(model, spec)
    before, total = stepped_weights(engine), 0.0
    set_eta(engine, 1e3)
    for ids, factor, share in parts:
        losses = losses_of(engine, ids, spec, END, padded=True)
        assert torch.isfinite(losses.loss)
        engine.backward(losses.objective * factor)
        engine.step()
        total += float(losses.loss.detach() * share)
    return total, stepped_weights(engine) - before


def test_an_end_right_after_an_end_is_padding() -> None:
    assert find_padding(IDS, END).sum(dim=1).tolist() == [12 - len(row) for row in BARE]


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("gpt_neox", {"micro_batch": 2}),
        ("llama", {"micro_batch": 1, "loss": "chunked"}),
        ("llama", {"micro_batch": 4, "mask": "document"}),
    ],
)
def test_loss_and_gradient_are_those_of_the_rows_without_their_padding(
    group_of_one: None, architecture: str, settings: dict[str, Any]
) -> None:
    share = [(len(row) - 1) / sum(len(row) - 1 for row in BARE) for row in BARE]
    alone = [(torch.tensor([row]), 4 * part, part) for row, part in zip(BARE, share, strict=True)]
    expected, change = _step(_model(architecture), settings | {"micro_batch": 1}, alone)
    parts = micro_batches(4, settings["micro_batch"], 0, 1)
    weights = weigh_targets(parts, IDS.numpy(), END, torch.device("cpu"), Grid.here(1))
    assert weights.padding == IDS.numel() - sum(map(len, BARE))
    rows = [IDS[part.rows] for part in parts]
    padded = list(zip(rows, weights.factors, weights.shares, strict=True))
    found, changed = _step(_model(architecture), settings, padded)
    assert found == pytest.approx(expected, rel=1e-5)
    assert change.norm() > 0.01
    assert (changed - change).norm() < 1e-4 * change.norm()


def test_the_balance_of_experts_is_that_of_the_tokens_that_count(group_of_one: None) -> None:
    spec = training_spec(balance_loss=0.5)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    engine = engine_of_one(_model("mixtral", **experts), spec)
    padded = losses_of(engine, IDS[:1], spec, END, padded=True)
    bare = losses_of(engine, torch.tensor(BARE[:1]), spec, END)
    assert padded.balance is not None and bare.balance is not None
    assert padded.balance.item() == pytest.approx(bare.balance.item(), rel=1e-5)
    assert padded.objective.item() == pytest.approx(bare.objective.item(), rel=1e-5)


def _weigh(folder: Path, tensor: int) -> None:
    from perennial.mixture.batches import slice_rank_rows

    grid = Grid.here(tensor)
    mine = np.array(ROWS[:3])[slice_rank_rows(3, grid.data_rank, grid.data_size)]
    parts = micro_batches(3, 1, grid.data_rank, grid.data_size)
    weights = weigh_targets(parts, mine, END, torch.device("cpu"), grid)
    np.save(folder / f"{grid.rank}.npy", np.array([[float(f) for f in weights.factors]]))


@pytest.mark.long
@pytest.mark.parametrize("tensor", [1, 2])
def test_I3_what_counts_is_the_number_of_tokens_whoever_computes_them(
    tmp_path: Path, tensor: int
) -> None:
    """Two groups for three rows: one of the four micro batches does not count."""
    run_on(2 * tensor, _weigh, tmp_path, tensor)
    ranks = (0, tensor)
    factors = np.concatenate([np.load(tmp_path / f"{rank}.npy").ravel() for rank in ranks])
    targets = [len(row) - 1 for row in BARE[:3]]
    # The engine divides by the micro batches of a rank and averages over ranks.
    shares = sorted(factors / 4)
    assert shares == pytest.approx(sorted([0, *(t / sum(targets) for t in targets)]))
