"""The average of checkpoints: bitwise that of numpy, whatever the files, in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from perennial.errors import Damaged
from perennial.runs.averaging import weights_of
from perennial.store import Store, open_store
from perennial.training.model import tensor_chunks
from perennial.training.model.average import write_average
from perennial.training.model.shards import INDEX, index_text
from tests.support.committed import commit_folder
from tests.support.refusal import refused

SHAPES = {"wte": (37, 8), "h.0.w": (8, 8), "h.0.b": (8,), "ln": (1,)}


def _commit(store: Store, step: int, folder: Path) -> str:
    """Commit a model's files, beside an optimizer's, as the checkpoint of a step."""
    (folder / "optimizer-00-of-01.safetensors").write_bytes(b"no weights")
    return commit_folder(store, folder, step)


def _models(count: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        {name: random.standard_normal(shape).astype("<f4") for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def _store_models(store: Store, folder: Path, models: list[dict[str, np.ndarray]]) -> list[str]:
    keys = []
    for step, model in enumerate(models, 1):
        local = folder / f"{step}"
        local.mkdir()
        if step % 2:
            save_file(model, local / "model.safetensors")
        else:  # in two files, as more workers would have written it
            names = sorted(model)
            parts = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
            for file, its in parts.items():
                save_file({name: model[name] for name in its}, local / file)
            sizes = {f: {n: model[n].nbytes for n in its} for f, its in parts.items()}
            (local / INDEX).write_text(index_text(sizes))
        keys.append(_commit(store, step, local))
    return keys


def _check(store: Store, folder: Path, weighting: str) -> None:
    """Average five models of a store, and compare with numpy."""
    models = _models(5)
    weights = np.asarray(weights_of(weighting, 5))
    keys = _store_models(store, folder, models)
    (target := folder / "out").mkdir()
    write_average(store, dict(zip(keys, weights.tolist(), strict=True)), target)
    assert [path.name for path in target.iterdir()] == ["model.safetensors"], "as the last one's"
    made = load_file(target / "model.safetensors")
    for name in SHAPES:
        stack = np.stack([model[name].ravel() for model in models])
        weighed = stack * weights.astype("<f4")[:, None]
        right = weighed.sum(axis=0) / np.float32(weights.sum())
        if weighting == "uniform":
            right = stack.mean(axis=0)
        assert (made[name].ravel() == right).all()


@pytest.mark.parametrize("chunk", [1 << 22, 5])
@pytest.mark.parametrize("weighting", ["uniform", "linear", "1-sqrt"])
def test_it_is_bitwise_the_average_of_numpy(
    tmp_path: Path, weighting: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_chunks, "_CHUNK", chunk)
    _check(open_store(tmp_path / "store"), tmp_path, weighting)


@pytest.mark.long
def test_it_is_bitwise_the_same_from_a_bucket(s3_url: str, tmp_path: Path) -> None:
    _check(open_store(s3_url), tmp_path, "uniform")


def test_its_files_are_those_of_the_last_checkpoint(tmp_path: Path) -> None:
    store, models = open_store(tmp_path / "store"), _models(2)
    keys = _store_models(store, tmp_path, models)
    (target := tmp_path / "out").mkdir()
    write_average(store, dict.fromkeys(keys, 1.0), target)
    assert len(json.loads((target / INDEX).read_text())["weight_map"]) == len(SHAPES)
    made = load_file(target / "model-00001-of-00002.safetensors")
    for name, tensor in made.items():
        assert (tensor == np.stack([model[name] for model in models]).mean(axis=0)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_averaged_in_32_bits_and_rounded_once(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    store, keys = open_store(tmp_path / "store"), []
    torch.manual_seed(0)
    models = [
        {"w": torch.randn(999).to(dtype), "steps": torch.tensor([step])} for step in (1, 2, 3)
    ]
    models[0]["w"][0] = torch.nan
    for step, model in enumerate(models, 1):
        (local := tmp_path / f"{step}").mkdir()
        save_torch(model, local / "model.safetensors")
        keys.append(_commit(store, step, local))
    (target := tmp_path / "out").mkdir()
    write_average(store, dict.fromkeys(keys, 1.0), target)
    made = load_torch(target / "model.safetensors")
    one, two, three = (model["w"].float() for model in models)
    right = ((one + two + three) / 3).to(dtype)
    assert torch.equal(made["w"][1:], right[1:])
    assert made["w"][0].isnan()
    assert made["steps"].tolist() == [3], "what is no floating-point number is the last one's"


def test_memory_does_not_grow_with_the_model(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tensor_chunks, "_CHUNK", 1 << 12)
    store, keys = open_store(tmp_path / "store"), []
    for step in (1, 2, 3):
        (local := tmp_path / f"{step}").mkdir()
        save_file({"w": np.full(1 << 21, step, "<f4")}, local / "model.safetensors")
        keys.append(_commit(store, step, local))
    (target := tmp_path / "out").mkdir()
    write_average(store, dict.fromkeys(keys, 1.0), target)  # what is imported once
    tracemalloc.start()
    write_average(store, dict.fromkeys(keys, 1.0), target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20, "of a model of 8 MiB a file"
    assert (load_file(target / "model.safetensors")["w"] == 2).all()


def test_checkpoints_that_differ_are_gone_or_were_altered_are_refused(tmp_path: Path) -> None:
    store, models = open_store(tmp_path / "store"), _models(3)
    models[1]["ln"] = np.zeros(2, "<f4")
    keys = _store_models(store, tmp_path, models)
    (target := tmp_path / "out").mkdir()
    with refused("average-impossible", keys[1]) as caught:
        write_average(store, dict.fromkeys(keys, 1.0), target)
    assert "other tensors" in caught.value.problem
    with refused("average-impossible", "checkpoints/00-en/00000009") as caught:
        write_average(store, dict.fromkeys([keys[0], "checkpoints/00-en/00000009"], 1.0), target)
    assert "retention" in caught.value.problem
    place = f"{keys[0]}/attempt/model.safetensors"
    store.write(place, store.read(place)[:-1] + b"\x01")
    with pytest.raises(Damaged, match=r"model\.safetensors"):
        write_average(store, dict.fromkeys(keys[::2], 1.0), target)
    assert not list(target.iterdir()), "nothing half is there"
