"""A model that ZeRO 3 divides while it is loaded: each rank holds its part and one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.gloo import run_on
from tests.support.memory_limit import PeakMemory
from tests.support.small_models import small_model

END = 3
LARGE = {"vocab_size": 64, "hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 16}


def _spec(precision: str) -> Any:
    from perennial.config.training import TrainingSpec

    return TrainingSpec.model_validate(
        {"global_batch": 2, "micro_batch": 1, "zero_stage": 3, "precision": precision}
    )


def _both_ways(folder: Path, result: Path) -> None:
    """Loss and weights after a step, of the model divided while loaded and of the whole one."""
    import torch.distributed as dist

    from perennial.training.engine.engine import (
        build_engine,
        gather_weights,
        load_model,
        loss_of,
        set_eta,
    )
    from perennial.training.model.config import stored_model

    ids = torch.arange(16)[None] % 50
    same: dict[str, list[bool]] = {}
    for precision in ("fp32", "bf16"):
        spec = _spec(precision)
        models = load_model(folder, spec, 2, 2), stored_model(folder)
        ends = []
        for model in models:
            engine = build_engine(model, spec, 2, 2, END)
            set_eta(engine, 1e-2)
            loss = loss_of(engine, ids, spec, END)
            engine.backward(loss)
            engine.step()
            weights = gather_weights(engine)
            ends.append(
                {"loss": loss.detach().clone()} | {n: w.clone() for n, w in weights.items()}
            )
            engine.destroy()
        ours, whole = ends
        divided = next(models[0].parameters())
        same[precision] = [
            hasattr(divided, "ds_id"),
            set(ours) == set(whole),
            all(torch.equal(ours[name], whole[name]) for name in whole),
        ]
    if dist.get_rank() == 0:
        result.write_text(json.dumps(same))


@pytest.mark.long
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        pytest.param("llama", {"tie_word_embeddings": False}, id="llama"),
        pytest.param("llama", {"tie_word_embeddings": True}, id="tied"),
        pytest.param("gpt_neox", {}, id="gpt_neox"),
        pytest.param("mixtral", {"num_local_experts": 4}, id="names-that-differ"),
    ],
)
def test_it_is_the_model_that_is_loaded_whole(
    tmp_path: Path, architecture: str, settings: dict[str, Any]
) -> None:
    model = small_model(architecture, **settings)
    model.save_pretrained(tmp_path / "model", max_shard_size="5KB")
    run_on(2, _both_ways, tmp_path / "model", tmp_path / "same.json")
    same = json.loads((tmp_path / "same.json").read_text())
    assert same == {"fp32": [True] * 3, "bf16": [True] * 3}


def _load_large(folder: Path, result: Path) -> None:
    import torch.distributed as dist

    from perennial.training.engine.engine import load_model

    load_model(folder / "small", _spec("fp32"), 2, 2)  # imports, once
    with PeakMemory() as peak:
        model = load_model(folder / "large", _spec("fp32"), 2, 2)
    whole = sum(each.ds_shape.numel() * 4 for each in model.parameters())
    (result / str(dist.get_rank())).write_text(json.dumps([peak.grown_bytes, whole]))


def test_a_rank_holds_its_part_and_a_file_of_a_model(tmp_path: Path) -> None:
    small_model("llama").save_pretrained(tmp_path / "small")
    small_model("llama", **LARGE).save_pretrained(tmp_path / "large", max_shard_size="40MB")
    run_on(2, _load_large, tmp_path, tmp_path)
    for rank in range(2):
        peak_bytes, whole_bytes = json.loads((tmp_path / str(rank)).read_text())
        assert whole_bytes > 400 << 20
        # What is divided is whole once more while it is copied.
        assert peak_bytes < whole_bytes / 2 + (3 * 40 << 20)
