"""Local files of a checkpoint, written from live tensors without copying them in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perennial.training.checkpoint.staging import QueuedWork, tensor_bytes
from perennial.training.engine.deepspeed_internals import whole_shape
from perennial.training.model.shards import (
    as_stored,
    count_shards,
    divide_evenly,
    file_names,
    live_weights,
    safetensors_header,
    tensor_files,
    tensor_info,
    write_descriptions,
)

_BLOCK = re.compile(r"\.\d+\.")


def write_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, ready: QueuedWork | None = None
) -> None:
    """Write `path` straight from the tensors' memory, over the file that is there.

    safetensors' own `save_file` needs copies of views and takes twice as long. A file that is
    written over in place keeps its pages in the system's cache, which halves the time again.

    Args:
        tensors: by name; live ones, which must not change meanwhile.
        path: a local file.
        ready: when those on a GPU have their values; default now.
    """
    header = safetensors_header((name, tensor_info(tensor)) for name, tensor in tensors.items())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as sink:
        _write(sink, header)
        for data in tensor_bytes(tensors.values(), ready):
            _write(sink, data)
        sink.truncate()


@dataclass(frozen=True)
class ModelShard:
    """One file of a model.

    file: its name.
    writer: the rank that writes it.
    weights: names of the module's tensors in it.
    stored: bytes of its tensors, by the names that transformers stores them under.
    """

    file: str
    writer: int
    weights: tuple[str, ...]
    stored: dict[str, int]


def divide_model(module: Any, writers: int) -> list[ModelShard]:
    """Return the files of a model, nearly equal in bytes for each of `writers` ranks.

    A tensor stays whole, and those that transformers stores as one stay together.
    """
    hollow = {
        name: torch.empty(whole_shape(tensor), dtype=tensor.dtype, device="meta")
        for name, tensor in live_weights(module).items()
    }
    groups = {group[0]: group for group in _stored_together(module, hollow)}
    sizes = {first: sum(hollow[n].nbytes for n in group) for first, group in groups.items()}
    lists = divide_evenly(sizes, count_shards(sum(sizes.values()), writers))
    parts = [[name for first in firsts for name in groups[first]] for firsts in lists if firsts]
    return [
        ModelShard(
            file,
            number % writers,
            tuple(names),
            {n: t.nbytes for n, t in as_stored(module, {n: hollow[n] for n in names}).items()},
        )
        for number, (file, names) in enumerate(zip(file_names(len(parts)), parts, strict=True))
    ]


def _stored_together(module: Any, hollow: dict[str, torch.Tensor]) -> list[list[str]]:
    """Return groups of names whose tensors transformers turns into stored ones independently.

    Most are alone. Where it makes one stored tensor of several, which none of its functions lists,
    the groups are the blocks: what is stored of a block alone and of its tensors one by one
    differs. All blocks are alike.
    """
    first_of_kind: dict[str, str] = {}
    for name in hollow:
        first_of_kind.setdefault(_BLOCK.sub(".#.", name, count=1), name)
    kinds = {name: hollow[name] for name in first_of_kind.values()}
    one_by_one: dict[str, torch.Tensor] = {}
    for name, tensor in kinds.items():
        one_by_one |= as_stored(module, {name: tensor})
    at_once = as_stored(module, kinds)
    if {n: t.shape for n, t in one_by_one.items()} == {n: t.shape for n, t in at_once.items()}:
        return [[name] for name in hollow]
    blocks: dict[str, list[str]] = {}
    for name in hollow:
        number = _BLOCK.search(name)
        blocks.setdefault(name[: number.end()] if number else "", []).append(name)
    return list(blocks.values())


def write_model_folder(
    module: Any,
    weights: dict[str, torch.Tensor],
    folder: Path,
    shards: Sequence[ModelShard],
    rank: int,
    ready: QueuedWork | None = None,
) -> None:
    """Write a rank's files of a model into `folder`, or write them over those that are there.

    Rank 0 also writes what belongs beside the weights, once.

    Args:
        module: the model.
        weights: whole tensors by the module's names, those of this rank's files. They may be live,
            and views of one buffer, as ZeRO's are: transformers' own `save_pretrained` would take
            those for tied weights and copy them.
        folder: local.
        shards: all files of the model.
        rank: of this process, among the writers.
        ready: when tensors on a GPU have their values; default now.
    """
    if not folder.exists():
        folder.mkdir()
        if rank == 0:
            write_descriptions(module, folder, {shard.file: shard.stored for shard in shards})
    for shard in shards:
        if shard.writer == rank:
            mine = {name: weights[name] for name in shard.weights}
            write_tensors(as_stored(module, mine), folder / shard.file, ready)


def weights_are_rounded(folder: Path) -> bool:
    """Return whether a checkpoint's model holds its weights in fewer bits than fp32."""
    from safetensors import safe_open

    for file in tensor_files(folder):
        with safe_open(file, framework="pt") as stored:
            keys: list[str] = list(stored.keys())
            if any(stored.get_slice(key).get_dtype() in ("BF16", "F16") for key in keys):
                return True
    return False


def _write(sink: Any, data: Any) -> None:
    """Write all of it: one call to the system writes at most 2 GiB."""
    left = memoryview(data)
    while left:
        left = left[sink.write(left) :]
