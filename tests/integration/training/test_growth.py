"""New entries of the vocabulary: their rows, their fp32 weights, their moments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from perennial.config.training import ModelSpec, TrainingSpec
from perennial.optimizers import AdamWConfig
from perennial.training.model.config import model_config, random_model, stored_model
from perennial.training.model.growth import grow_folder, grow_rows, grown_rows
from tests.support.gloo import run_on

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2}
ROWS = 64
PIECES = [[1, 2], [3, 4, 5], [6, 60]]


def small_model(architecture: str, **config: Any) -> Any:
    spec = ModelSpec(architecture=architecture, config=SMALL | config)
    return random_model(model_config(spec, ROWS, 0, 8), seed=1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
@pytest.mark.parametrize("first", [ROWS, ROWS - 2])
def test_new_rows_are_means_of_their_pieces(
    tmp_path: Path, architecture: str, tied: bool, first: int
) -> None:
    """Where the first new ids are rows of padding, those rows are replaced."""
    model = small_model(architecture, tie_word_embeddings=tied)
    pieces = [[min(piece, first - 1) for piece in run] for run in PIECES]
    model.save_pretrained(tmp_path)
    grow_folder(tmp_path, first, pieces)
    grown = stored_model(tmp_path)
    assert grown.config.vocab_size == grown_rows(ROWS, first + 3)
    for name in ("get_input_embeddings", "get_output_embeddings"):
        before = getattr(model, name)().weight.detach()
        after = getattr(grown, name)().weight.detach()
        assert torch.equal(after[:first], before[:first])
        for number, run in enumerate(pieces):
            mean = before[run].double().mean(0).float()
            assert torch.equal(after[first + number], mean)
        beyond = after[max(ROWS, first + 3) :]
        torch.testing.assert_close(beyond, before[:first].mean(0).expand_as(beyond))
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        old, new = model(ids).logits, grown(ids).logits
    torch.testing.assert_close(new[..., :first], old[..., :first])
    mean = torch.stack([old[..., run].mean(-1) for run in pieces], -1)
    torch.testing.assert_close(new[..., first : first + 3], mean)


def test_a_model_of_several_files_in_fewer_bits(tmp_path: Path) -> None:
    model = small_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    grow_folder(tmp_path, ROWS, PIECES)
    grown, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype="auto", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert grown.dtype == torch.bfloat16
    assert grown.get_input_embeddings().weight.shape[0] == 128
    size = json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]
    assert size["total_size"] == sum(p.nbytes for p in grown.parameters())


@pytest.mark.parametrize(
    ("rows", "vocabulary", "wanted"),
    [(64, 60, 64), (64, 64, 64), (64, 65, 128), (50257, 50300, 50300), (50304, 58257, 58368)],
)
def test_rows_keep_the_multiple_that_a_model_is_padded_to(
    rows: int, vocabulary: int, wanted: int
) -> None:
    assert grown_rows(rows, vocabulary) == wanted


def test_a_bias_of_the_head_grows_too() -> None:
    grown = grow_rows(torch.tensor([1.0, 3.0, 8.0]), 2, [[0, 1]], 4)
    assert grown.tolist() == [1.0, 3.0, 2.0, 2.0]


def _engine(model: Any, precision: str) -> Any:
    from perennial.training.engine.engine import build_engine

    settings = {"global_batch": 1, "micro_batch": 1, "precision": precision, "zero_stage": 1}
    return build_engine(model, TrainingSpec.model_validate(settings), 1, 1, 0)


def _moments(folder: Path, precision: str) -> None:
    from perennial.training.checkpoint.tensors import write_tensors
    from perennial.training.engine.deepspeed_internals import owned_shards, whole_shape
    from perennial.training.engine.engine import set_eta
    from perennial.training.engine.optimizer_state import load_optimizer, optimizer_state
    from perennial.training.model.growth import vocabulary_weights

    adamw = AdamWConfig()
    model = small_model("llama", tie_word_embeddings=True)
    engine = _engine(model, precision)
    for step in range(2):
        ids = torch.randint(0, ROWS, (1, 8), generator=torch.manual_seed(step))
        set_eta(engine, 1e-2)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    tensors, steps = optimizer_state(engine, adamw)
    write_tensors(tensors, folder / "optimizer-00-of-01.safetensors")
    engine.module.save_pretrained(folder)
    grow_folder(folder, ROWS - 2, PIECES)
    again = _engine(stored_model(folder), precision)
    first_new = {
        name: (ROWS - 2) * whole_shape(weight)[1:].numel()
        for name, weight in vocabulary_weights(again.module).items()
    }
    load_optimizer(again, adamw, folder.glob("optimizer-*"), steps, first_new)
    now, _ = optimizer_state(again, adamw)
    name = next(piece.parameter for piece in owned_shards(again) if piece.parameter in first_new)
    facts: dict[str, Any] = {}
    for kind in ("exp_avg", "exp_avg_sq", *(("master",) if precision == "bf16" else ())):
        before, after = (given[f"{name}|0|{kind}"] for given in (tensors, now))
        end = first_new[name]
        facts[kind] = {
            "kept": torch.equal(before[:end], after[:end]),
            "new is zero": not after[end:].any(),
            "length": len(after),
        }
    if precision == "bf16":
        model_rows = vocabulary_weights(again.module)[name].detach().float().flatten()
        facts["new is the model's"] = torch.equal(now[f"{name}|0|master"][end:], model_rows[end:])
    (folder / "facts.json").write_text(json.dumps(facts))


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_moments_of_new_rows_are_zero_and_of_old_ones_kept(tmp_path: Path, precision: str) -> None:
    run_on(1, _moments, tmp_path, precision)
    facts = json.loads((tmp_path / "facts.json").read_text())
    kept = {"kept": True, "new is zero": True, "length": 128 * 16}
    assert [facts["exp_avg"], facts["exp_avg_sq"]] == [kept, kept]
    if precision == "bf16":
        assert facts["master"] == {**kept, "new is zero": False}
        assert facts["new is the model's"]
