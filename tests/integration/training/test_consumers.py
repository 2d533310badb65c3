"""A release gives the same logits in every program that the docs name, in the format's precision.

What they are is installed apart, by `make build/consumers/installed`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from perennial.corpora import import_tokenizer, read_base_files, read_tokenizer
from perennial.corpora.release_tokenizer import release_files
from perennial.store import open_store
from perennial.training.model.export import export
from perennial.training.model.gguf_file import write_gguf
from tests.support.base_folders import ARCHITECTURES, FAMILIES, write_base
from tests.support.committed import commit_model
from tests.support.read_elsewhere import TEXT
from tests.support.rope_kinds import ROPES
from tests.support.small_models import small_model
from tests.support.small_tokenizers import byte_level_json

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / "build/consumers/bin/python"
READER = ROOT / "tests/support/read_elsewhere.py"
LENGTH = 96
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "initializer_range": 0.25,
    "max_position_embeddings": 128,
}


def write_release(folder: Path, model: Any, files: dict[str, bytes]) -> Path:
    """Commit a model as a checkpoint, export it, and keep ids with the logits that it gives."""
    store = open_store(folder / "store")
    export(store, commit_model(store, model, folder / "saved"), "releases/r", files, "A card.")
    release = folder / "store/releases/r"
    (release / "manifest.json").unlink()
    named = release.rename(folder / folder.name)
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, LENGTH)
    np.save(named / "ids.npy", ids)
    with torch.no_grad():
        np.save(named / "expected.npy", model.eval()(torch.from_numpy(ids)[None]).logits[0].numpy())
    return named


def read_elsewhere(consumer: str, folders: list[Path]) -> dict[str, dict[str, Any]]:
    """Return what a consumer sees in each folder."""
    command = [str(PYTHON), str(READER), consumer, *map(str, folders)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    seen: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return seen


def difference(folder: Path, consumer: str) -> float:
    """Return the largest difference of logits, in standard deviations of the model's own."""
    expected, logits = np.load(folder / "expected.npy"), np.load(folder / f"{consumer}.npy")
    return float(np.abs(logits - expected).max() / expected.std())


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return releases of models of five families, which began as stored ones."""
    releases = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp("stored") / family
        base = write_base(folder / "base", family)
        store = open_store(folder / "tokenizers")
        tokenizer = import_tokenizer(store, base)
        generation = json.loads((base / "generation_config.json").read_text())
        sizes = SIZES | {"vocab_size": tokenizer.vocabulary, "pad_token_id": None}
        model = small_model(ARCHITECTURES[family], **sizes)
        for name in ("bos_token_id", "eos_token_id"):
            setattr(model.generation_config, name, generation[name])
            setattr(model.config, name, generation[name])
        files = release_files(tokenizer, read_base_files(store, tokenizer))
        releases[family] = write_release(folder, model, files)
    return releases


CONSUMERS = {
    "transformers": ("transformers 4.57.6", "the folder", 1e-4),
    "ctranslate2": ("CTranslate2 4.8.5", "the folder, by its converter", 1e-4),
    "llama_cpp": ("llama.cpp, of llama-cpp-python 0.3.36", "`--format gguf`", 1e-4),
}
"""name and version, what it reads, and how far its logits may be from the model's, in standard
deviations of these"""
OTHERWISE = {("llama_cpp", "gpt2"): 0.02, ("llama_cpp", "gpt_neox"): 0.02}
"""its GELU is a table of 16 bits"""


def bound(consumer: str, family: str) -> float:
    return OTHERWISE.get((consumer, family), CONSUMERS[consumer][2])


def table() -> str:
    """Return the table of the docs: what is compared, and how near it is."""
    head = f"| | reads | {' | '.join(FAMILIES)} |\n| --- | --- |{' --- |' * len(FAMILIES)}\n"
    return head + "".join(
        f"| {name} | {reads} | {' | '.join(f'{bound(c, f):g}' for f in FAMILIES)} |\n"
        for c, (name, reads, _) in CONSUMERS.items()
    )


def test_the_docs_have_the_table_of_what_is_compared() -> None:
    print(table())
    assert table() in (ROOT / "docs/guide/release.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for pinned in ("transformers==4.57.6", "ctranslate2==4.8.5", "llama-cpp-python==0.3.36"):
        assert pinned in makefile


@pytest.mark.long
def test_i13_version_4_computes_the_same_of_models_that_began_from_an_architecture(
    tmp_path: Path,
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level_json(300)))
    files = release_files(read_tokenizer(tmp_path / "tokenizer.json"))
    folders = {}
    for name, (model_type, settings) in ROPES.items():
        sizes = SIZES | {"vocab_size": 300, "use_cache": False}
        model = small_model(model_type, **sizes | settings)
        folders[name] = write_release(tmp_path / name, model, files)
    seen = read_elsewhere("transformers", list(folders.values()))
    errors = {name: its["error"] for name, its in seen.items() if "error" in its}
    assert not errors
    differences = {name: difference(folder, "transformers") for name, folder in folders.items()}
    assert not {n: far for n, far in differences.items() if far > bound("transformers", n)}
    assert all(its["use_cache"] for its in seen.values())
    assert {its["dtype"] for its in seen.values()} == {"torch.float32"}


@pytest.mark.long
def test_i13_version_4_reads_releases_of_stored_models(continued: dict[str, Path]) -> None:
    bases = [folder.parent / "base" for folder in continued.values()]
    seen = read_elsewhere("transformers", [*continued.values(), *bases])
    for family, folder in continued.items():
        its, base = seen[str(folder)], seen[str(folder.parent / "base")]
        assert "error" not in its | base, (its, base)
        assert difference(folder, "transformers") < bound("transformers", family)
        assert {name: its[name] for name in base} == base
        generation = json.loads((folder / "generation_config.json").read_text())
        assert its["ends"] == generation["eos_token_id"]


@pytest.mark.long
def test_i13_ctranslate2_computes_the_same(continued: dict[str, Path]) -> None:
    seen = read_elsewhere("ctranslate2", list(continued.values()))
    for family, folder in continued.items():
        assert "error" not in seen[str(folder)], seen[str(folder)]
        assert difference(folder, "ctranslate2") < bound("ctranslate2", family)


@pytest.mark.long
def test_i13_llama_cpp_computes_the_same_of_a_gguf_file(
    continued: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level_json(300)))
    files = release_files(read_tokenizer(tmp_path / "tokenizer.json"))
    folders = dict(continued)
    for name in ("llama-linear", "llama-3", "qwen2"):
        model_type, settings = ROPES[name]
        model = small_model(model_type, **SIZES | {"vocab_size": 300} | settings)
        folders[name] = write_release(tmp_path / name, model, files)
    for name, folder in folders.items():
        write_gguf(folder, folder / "model.gguf", name)
    seen = read_elsewhere("llama_cpp", list(folders.values()))
    for name, folder in folders.items():
        its = seen[str(folder)]
        assert "error" not in its, (name, its)
        ours = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        assert difference(folder, "llama_cpp") < bound("llama_cpp", name), name
        assert its["eos"] == ours.eos_token_id, name
        assert its["text"] == ours(TEXT)["input_ids"], name
        if ours.bos_token_id is not None:
            assert its["bos"] == ours.bos_token_id, name
