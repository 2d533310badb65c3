"""Loading of a stored model under ZeRO 3, where no rank may hold more than its part of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open

from perennial.training.engine.deepspeed_internals import partition
from perennial.training.model.shards import tensor_files

_BATCH_BYTES = 64 << 20
"""Weights that are whole at once: dividing them one by one takes a collective for each."""


def load_partitioned(folder: Path, dtype: torch.dtype, settings: dict[str, Any]) -> Any | None:
    """Return the model in a local folder, of which each rank holds its part. A collective.

    The tensors are read file by file and divided as they come, so a rank holds its part and one
    file at most, in the pages of that file, which the ranks of a node share.

    Args:
        folder: with config.json and safetensors; nothing is unpickled.
        dtype: of the weights.
        settings: DeepSpeed's configuration.

    Returns:
        The model; None where the files have other names than the model's weights, which
        transformers alone can translate, with the whole model in memory.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Buffers are computed and not stored, so they are real at once.
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    places = _places(model)
    files = tensor_files(folder)
    stored = {name for file in files for name in _names(file)}
    wanted = set(places) | {name for name, _ in model.named_buffers() if name in stored}
    if not set(places) <= stored <= wanted | _tied_names(model):
        return None
    batch: list[torch.nn.Parameter] = []
    for file in files:
        for name, tensor in _tensors(file, places):
            weights = torch.nn.Parameter(tensor.to(dtype))
            for module, attribute in places[name]:
                setattr(module, attribute, weights)
            batch.append(weights)
            if sum(whole.nbytes for whole in batch) > _BATCH_BYTES:
                partition(batch, settings)
                batch.clear()
        partition(batch, settings)  # before the file is closed, whose pages they are
        batch.clear()
    return model


def _places(model: torch.nn.Module) -> dict[str, list[tuple[torch.nn.Module, str]]]:
    """Return the modules and attributes that hold each parameter, by its first name."""
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    places: dict[str, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            places.setdefault(first_names[id(parameter)], []).append((module, attribute))
    return places


def _tied_names(model: torch.nn.Module) -> set[str]:
    """Return all names of parameters that have several; files may have any of them."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as stored:
        names: list[str] = list(stored.keys())
        return names


def _tensors(file: Path, wanted: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the wanted tensors of a file, one at a time."""
    with safe_open(file, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118, a handle is no mapping
            if name in wanted:
                yield name, stored.get_tensor(name)
