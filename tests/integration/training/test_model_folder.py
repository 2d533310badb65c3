"""The folder of a model that trains is the one that transformers itself would write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from perennial.training.checkpoint.tensors import divide_model, write_model_folder
from perennial.training.model import shards as shards_of
from perennial.training.model.shards import live_weights, tensor_files
from tests.support.small_models import small_model

SPECIAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 32},  # ties its head to the embedding
    "gpt_neox": {},  # stored under older names
    "llama": {"tie_word_embeddings": False},
    "mixtral": {"num_local_experts": 4},  # stored expert by expert, held as one tensor
    "hrm_text": {},  # gate and up, and queries to values, stored as one tensor
}


def _write(model: Any, folder: Path, writers: int) -> None:
    """Write the folder as so many ranks do, each with the weights of its own files alone."""
    folder.mkdir(exist_ok=True)
    shards = divide_model(model, writers)
    weights = {name: tensor.detach() for name, tensor in live_weights(model).items()}
    for rank in range(writers):
        of_rank = folder.with_name(f"{folder.name}-{rank}")
        mine = {n: weights[n] for shard in shards if shard.writer == rank for n in shard.weights}
        write_model_folder(model, mine, of_rank, shards, rank)
        for file in of_rank.iterdir():
            shutil.copy(file, folder)


@pytest.mark.parametrize("writers", [1, 3])
@pytest.mark.parametrize("architecture", SPECIAL)
def test_a_model_folder_is_as_transformers_writes_it(
    tmp_path: Path, architecture: str, writers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_of, "SMALLEST_BYTES", 1)
    model = small_model(architecture, **SPECIAL[architecture]).eval()
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    _write(model, ours, writers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    _write(model, ours, writers)
    model.save_pretrained(theirs)

    files = tensor_files(ours)
    assert len(files) == writers
    beside = {file.name for file in theirs.iterdir()} - {"model.safetensors"}
    index = {shards_of.INDEX} if writers > 1 else set()
    assert {file.name for file in ours.iterdir()} == beside | index | {f.name for f in files}
    for name in beside:
        assert (ours / name).read_text() == (theirs / name).read_text()
    expected = load_file(theirs / "model.safetensors")
    written: dict[str, torch.Tensor] = {}
    for file in files:
        written |= load_file(file)
    assert sum(len(load_file(file)) for file in files) == len(written), "each tensor once"
    assert set(written) == set(expected)
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    if writers > 1:
        places = json.loads((ours / shards_of.INDEX).read_text())["weight_map"]
        assert places == {name: file.name for file in files for name in load_file(file)}
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(ours).eval()(ids).logits
        assert torch.equal(again, model(ids).logits)
