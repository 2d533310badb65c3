"""Rows of a model for the new entries of its tokenizer, written into the files it is loaded from.

A row of the embedding, and of the head, starts as the mean of the rows of the pieces that its entry
replaces. So the model's logit of a new entry is the mean of theirs, and by Jensen's inequality its
odds against any old entry are at most the mean of theirs. Files are grown before any worker reads
them: weights are divided under ZeRO 3 as always, and what is grown is a function of the checkpoint
and the tokenizer alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.store.stored_json import parse_json
from perennial.training.model.config import weightless_model
from perennial.training.model.shards import (
    INDEX,
    as_stored,
    safetensors_header,
    tensor_files,
    tensor_info,
)

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

_MULTIPLES = (128, 64, 32, 16, 8)
"""numbers of rows that models are padded to; growth keeps the multiple"""


def grown_rows(rows: int, vocabulary: int) -> int:
    """Return the rows of a model that has entries for a vocabulary; never fewer than it has.

    Args:
        rows: of its embedding.
        vocabulary: the highest token id plus 1.
    """
    if vocabulary <= rows:
        return rows
    multiple = next((m for m in _MULTIPLES if rows % m == 0), 1)
    return -(-vocabulary // multiple) * multiple


def grow_folder(folder: Path, first: int, pieces: Sequence[Sequence[int]]) -> None:
    """Give the model in a local folder rows for new entries.

    A model that has them already, by its padding, gets other values there.

    Args:
        folder: with config.json and safetensors.
        first: id of the first new entry.
        pieces: for each new entry, the ids that its text was made of.

    Raises:
        RuntimeError: other weights than embedding and head have a row for each entry.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    rows = config.get_text_config().vocab_size
    wanted = grown_rows(rows, first + len(pieces))
    model = weightless_model(config)
    weights = vocabulary_weights(model)
    _check_others(config, weights)
    names = _names_in_files(model, weights)
    for file in tensor_files(folder):
        _grow_file(file, names, first, pieces, wanted)
    _note_rows(folder / "config.json", rows, wanted)
    if (folder / INDEX).exists():
        _note_size(folder)


def vocabulary_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a model that have a row for each entry, by all of their names."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    own = [p for module in modules if module is not None for p in module.parameters()]
    named: dict[str, torch.Tensor] = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if any(parameter is mine for mine in own)
    }
    return named


def _names_in_files(model: Any, weights: dict[str, torch.Tensor]) -> set[str]:
    """Return every name that weights may have in a file: some files leave the prefix out."""
    names = {stored for name, w in weights.items() for stored in as_stored(model, {name: w})}
    prefix = f"{model.base_model_prefix}."
    return {*names, *weights, *(name.removeprefix(prefix) for name in (*names, *weights))}


def _check_others(config: PretrainedConfig, names: Collection[str]) -> None:
    """Raise RuntimeError where other weights depend on the number of entries too."""
    larger = deepcopy(config)
    larger.get_text_config().vocab_size += _MULTIPLES[0]
    shapes = [
        {name: tuple(weight.shape) for name, weight in weightless_model(its).named_parameters()}
        for its in (config, larger)
    ]
    changed = {name for name, shape in shapes[0].items() if shapes[1][name] != shape}
    if others := sorted(changed.difference(names)):
        raise RuntimeError(
            f"{config.model_type} has {others[0]} besides embedding and head: its vocabulary "
            "cannot grow"
        )


def _grow_file(
    file: Path, names: Collection[str], first: int, pieces: Sequence[Sequence[int]], rows: int
) -> None:
    """Write a file of tensors again, in place of the one that is there, if one of them grows."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        keys: list[str] = list(stored.keys())
        mine = [key for key in keys if key in names]
        if not mine:
            return
        tensors = {key: stored.get_tensor(key) for key in keys}
        for key in mine:
            tensors[key] = grow_rows(tensors[key], first, pieces, rows)
        new = file.with_suffix(".grown")
        with new.open("wb") as sink:
            sink.write(safetensors_header((n, tensor_info(t)) for n, t in tensors.items()))
            for tensor in tensors.values():
                sink.write(_bytes_of(tensor))
    new.replace(file)


def grow_rows(
    weights: torch.Tensor, first: int, pieces: Sequence[Sequence[int]], rows: int
) -> torch.Tensor:
    """Return weights `(rows, ...)` with a mean for each new entry; those before it stay.

    Rows beyond all entries, which no text has, are means of all.

    Args:
        weights: `(fewer rows, ...)`.
        first: id of the first new entry.
        pieces: for each new entry, the ids that its text was made of.
        rows: to return.
    """
    import torch

    known = weights[:first].double()
    grown = torch.empty((rows, *weights.shape[1:]), dtype=weights.dtype)
    grown[: len(weights)] = weights
    grown[len(weights) :] = known.mean(dim=0)
    for number, run in enumerate(pieces):
        grown[first + number] = known[list(run)].mean(dim=0)
    return grown


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    data: Any = tensor.contiguous().view(torch.uint8).flatten().numpy()
    return memoryview(data)


def _note_rows(file: Path, before: int, after: int) -> None:
    """Write the new number of rows wherever the configuration has the old one as such."""
    config = parse_json(file.read_bytes())
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and part.get("vocab_size", before) == before:
            part["vocab_size"] = after
    file.write_text(json.dumps(config, indent=2))


def _note_size(folder: Path) -> None:
    """Write the new number of bytes into the index of several files."""
    from safetensors import safe_open

    total = 0
    for file in tensor_files(folder):
        with safe_open(file, framework="pt") as stored:
            total += sum(tensor_info(stored.get_tensor(k)).size_bytes for k in stored.keys())  # noqa: SIM118
    index = parse_json((folder / INDEX).read_bytes())
    index["metadata"] = index.get("metadata", {}) | {"total_size": total}
    (folder / INDEX).write_text(json.dumps(index, indent=2))
