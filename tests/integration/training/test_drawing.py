"""A random model that is drawn into its files is bitwise the one that is drawn whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING

from perennial.training.model.config import random_model, stored_model
from perennial.training.model.drawing import draw_model
from perennial.training.model.shards import live_weights, tensor_files
from tests.support.gloo import run_on
from tests.support.memory_limit import PeakMemory
from tests.support.small_models import small_model

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("gpt_neox", {}),
    "redrawn-by-parents-and-tied": ("gpt2", {"n_inner": 32}),
    "llama": ("llama", {}),
    "head-drawn-and-dropped": ("llama", {"tie_word_embeddings": True}),
    "experts": ("mixtral", {"num_local_experts": 4}),
    "padding-row": ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 16}),
    "biases": ("bloom", {}),
    "norms-of-heads": ("qwen3", {"head_dim": 8}),
    "computed-rates": ("mamba", {"state_size": 4}),
    "softcaps": ("gemma2", {"head_dim": 8}),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_bitwise_the_model_that_is_drawn_whole(tmp_path: Path, name: str) -> None:
    architecture, settings = MODELS[name]
    config = small_model(architecture, **settings).config
    whole = random_model(config, 7)
    draw_model(config, 7, "architecture", tmp_path / "drawn", largest_bytes=5000)
    expected = live_weights(whole)
    files = tensor_files(tmp_path / "drawn")
    assert len(files) > 2
    drawn: dict[str, torch.Tensor] = {}
    for file in files:
        drawn |= load_file(file)
    assert set(drawn) == set(expected)
    for weight, tensor in expected.items():
        assert torch.equal(drawn[weight], tensor), weight
    loaded = live_weights(stored_model(tmp_path / "drawn"))
    for weight, tensor in expected.items():
        assert torch.equal(loaded[weight], tensor), weight
    whole.save_pretrained(tmp_path / "whole")
    for described in (tmp_path / "whole").glob("*.json"):
        assert (tmp_path / "drawn" / described.name).read_text() == described.read_text()


def test_the_papers_initialisation_is_drawn_alike(tmp_path: Path) -> None:
    config = small_model("gpt_neox").config
    whole = random_model(config, 7, "small-wang")
    draw_model(config, 7, "small-wang", tmp_path / "drawn", largest_bytes=5000)
    loaded = live_weights(stored_model(tmp_path / "drawn"))
    for weight, tensor in live_weights(whole).items():
        assert torch.equal(loaded[weight], tensor), weight


def test_the_next_draw_goes_on_where_drawing_stopped(tmp_path: Path) -> None:
    config = small_model("llama").config
    random_model(config, 3)
    expected = torch.rand(4)
    draw_model(config, 3, "architecture", tmp_path / "drawn")
    assert torch.equal(torch.rand(4), expected)


def _draw_large(folder: Path) -> None:
    draw_model(small_model("llama").config, 1, "architecture", folder / "small")  # imports, once
    config = CONFIG_MAPPING["llama"](
        vocab_size=64, hidden_size=512, intermediate_size=4096, num_hidden_layers=8
    )
    with PeakMemory() as peak:
        draw_model(config, 1, "architecture", folder / "large")
    size = sum(file.stat().st_size for file in tensor_files(folder / "large"))
    (folder / "bytes.json").write_text(json.dumps([peak.grown_bytes, size]))


def test_drawing_holds_a_part_of_the_model(tmp_path: Path) -> None:
    run_on(1, _draw_large, tmp_path)
    peak_bytes, size_bytes = json.loads((tmp_path / "bytes.json").read_text())
    assert size_bytes > 200 << 20
    assert peak_bytes < 110 << 20
