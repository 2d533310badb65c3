"""Releases as GGUF files: fields and tensors, and what the format has no name for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from perennial.config.training import ModelSpec
from perennial.corpora import read_tokenizer
from perennial.corpora.release_tokenizer import release_files
from perennial.store import open_store
from perennial.training.model.gguf_file import write_gguf
from perennial.training.model.initial import import_model
from tests.support.base_folders import ARCHITECTURES, FAMILIES, write_base
from tests.support.refusal import refused
from tests.support.small_models import small_model

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "initializer_range": 0.25,
    "vocab_size": 600,
}
SPLITS = {
    "gpt2": "gpt-2",
    "gpt_neox": "gpt-2",
    "llama3": "llama-bpe",
    "mistral": "default",
    "smollm2": "smollm",
}


def write_folder(folder: Path, model: Any, family: str = "gpt2") -> Path:
    """Write a release of a model with a family's tokenizer."""
    base = write_base(folder / "base", family)
    generation = json.loads((base / "generation_config.json").read_text())
    model.save_pretrained(folder)
    kept = {file.name: file.read_bytes() for file in base.iterdir()}
    tokenizer = release_files(read_tokenizer(base), kept)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(tokenizer[name])
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def fields_of(file: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(file)
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_names_the_tokenizer_as_it_is(tmp_path: Path, family: str) -> None:
    model = small_model(ARCHITECTURES[family], **SIZES)
    folder = write_folder(tmp_path, model, family)
    write_gguf(folder, tmp_path / "m.gguf", "own")
    its = fields_of(tmp_path / "m.gguf")
    ids = read_tokenizer(folder).build().get_vocab()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    prefix = "tokenizer.ggml"
    assert its[f"{prefix}.pre"] == SPLITS[family]
    for name in ("bos", "eos"):
        named = config[f"{name}_token"]
        text = named["content"] if isinstance(named, dict) else named
        assert its[f"{prefix}.{name}_token_id"] == ids[text]
    assert its[f"{prefix}.add_bos_token"] == (family in ("llama3", "mistral"))
    tokens, types = its[f"{prefix}.tokens"], its[f"{prefix}.token_type"]
    assert {tokens[number]: number for number in ids.values()} == ids
    assert len(tokens) == len(types) == 600
    assert set(types[len(ids) :]) == {gguf.TokenType.UNUSED}
    assert types[ids["<s>" if family == "mistral" else its_special(config)]] == 3
    if family == "llama3":
        assert its["tokenizer.chat_template"] == config["chat_template"]
        assert its[f"{prefix}.eot_token_id"] == ids["<|end_of_text|>"]


def its_special(config: dict[str, Any]) -> str:
    end = config["eos_token"]
    return str(end["content"] if isinstance(end, dict) else end)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_is_read_back_as_the_model(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_model("llama", **SIZES).to(dtype).eval()
    folder = write_folder(tmp_path, model)
    write_gguf(folder, tmp_path / "m.gguf", "own")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=dtype)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("olmo2", {}),
        ("mistral", {"sliding_window": 8}),
        ("llama", {"hidden_act": "gelu"}),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 9.0, "factor": 2.0}},
        ),
    ],
)
def test_a_model_that_the_format_lacks_is_refused(
    tmp_path: Path, model_type: str, settings: dict[str, Any]
) -> None:
    folder = write_folder(tmp_path, small_model(model_type, **SIZES | settings))
    with refused("format-lacks-model", "--format"):
        write_gguf(folder, tmp_path / "m.gguf", "own")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("normalizer", {"type": "Lowercase"}),
        ("model", {"type": "Unigram", "unk_id": 0, "vocab": [["<|endoftext|>", 0.0], ["a", -1.0]]}),
    ],
)
def test_a_tokenizer_that_the_format_lacks_is_refused(
    tmp_path: Path, part: str, content: dict[str, Any]
) -> None:
    folder = write_folder(tmp_path, small_model("llama", **SIZES))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {part: content}))
    with refused("format-lacks-model", "--format"):
        write_gguf(folder, tmp_path / "m.gguf", "own")


def test_importing_a_file_draws_no_bar_and_needs_no_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "release", small_model("llama", **SIZES), "smollm2")
    write_gguf(folder, tmp_path / "m.gguf", "own")
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    capsys.readouterr()
    spec = ModelSpec(path=str(tmp_path / "m.gguf"))
    import_model(open_store(str(tmp_path / "store")), spec, 600, 0, 32)
    assert capsys.readouterr().err == ""
    assert "deepspeed" not in sys.modules
