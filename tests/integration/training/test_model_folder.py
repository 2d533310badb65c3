"""The folder of a model that trains is the one that transformers itself would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from perennial.training.checkpoint.tensors import write_model_folder
from tests.support.small_models import small_model

SPECIAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 32},  # ties its head to the embedding
    "gpt_neox": {},  # stored under older names
    "llama": {"tie_word_embeddings": False},
    "mixtral": {"num_local_experts": 4},  # stored expert by expert, held as one tensor
}


def _live_weights(model: Any) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters()) | dict(model.named_buffers())
    return {n: t.detach() for n, t in parameters.items() if n in model.state_dict()}


@pytest.mark.parametrize("architecture", SPECIAL)
def test_a_model_folder_is_as_transformers_writes_it(tmp_path: Path, architecture: str) -> None:
    model = small_model(architecture, **SPECIAL[architecture]).eval()
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    write_model_folder(model, _live_weights(model), ours)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    write_model_folder(model, _live_weights(model), ours)
    model.save_pretrained(theirs)

    assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
    for file in theirs.glob("*.json"):
        assert (ours / file.name).read_text() == file.read_text()
    written, expected = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    assert set(written) == set(expected)
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(ours).eval()(ids).logits
        assert torch.equal(again, model(ids).logits)
