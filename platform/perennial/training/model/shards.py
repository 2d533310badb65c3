"""Safetensors files that a model is divided into, and the index that says what is where.

The names are transformers' own: `model.safetensors` alone, or `model-00001-of-00002.safetensors`
and so on beside an index.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_PART = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_ALIGNMENT_BYTES = 8
_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
"""Safetensors' names by torch's: this module is read where torch is not needed."""
SMALLEST_BYTES = 16 << 20
"""A model is not cut into smaller files than this: they cost a request each, and save nothing."""
LARGEST_BYTES = 2 << 30
"""Files are not larger than this, unless one tensor is."""


class TensorInfo(NamedTuple):
    """Kind and size of a stored tensor: dtype as safetensors names it, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def tensor_info(tensor: torch.Tensor) -> TensorInfo:
    """Return kind and size of a tensor, which may have no numbers."""
    return TensorInfo(_DTYPES[str(tensor.dtype)], tuple(tensor.shape), tensor.nbytes)


def live_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's stored tensors by name; one that modules share once, as transformers does.

    Under ZeRO 3 a parameter may be empty here, see `whole_shape`.
    """
    weights: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name] = tensor
    return weights


def as_stored(module: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors of a module as transformers stores them."""
    from transformers.core_model_loading import revert_weight_conversion

    stored: dict[str, torch.Tensor] = revert_weight_conversion(module, weights)
    return stored


def count_shards(total_bytes: int, writers: int) -> int:
    """Return the number of files for a model, a multiple of `writers` where all of them write."""
    if total_bytes < writers * SMALLEST_BYTES:
        return max(1, total_bytes // SMALLEST_BYTES)
    return writers * -(-total_bytes // (writers * LARGEST_BYTES))


def divide_evenly(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """Divide names into `parts` lists of nearly equal bytes, each in the order given.

    The largest go first, each to the list with the fewest bytes: no two lists differ by more than
    the largest name. A list may be empty where there are fewer names than parts.
    """
    of_name: dict[str, int] = {}
    loads = [0] * parts
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        lightest = loads.index(min(loads))
        of_name[name] = lightest
        loads[lightest] += sizes[name]
    return [[name for name in sizes if of_name[name] == part] for part in range(parts)]


def file_names(count: int) -> list[str]:
    """Return the names of a model's `count` files."""
    if count == 1:
        return [WHOLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def index_text(files: Mapping[str, Mapping[str, int]]) -> str:
    """Return the index of a model's files, given the bytes of the tensors in each."""
    places = {name: file for file, tensors in files.items() for name in tensors}
    total = sum(size for tensors in files.values() for size in tensors.values())
    return json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)


def write_descriptions(module: Any, folder: Path, files: Mapping[str, Mapping[str, int]]) -> None:
    """Write what lies beside the weights: configurations, and the index of several files.

    It comes before the weights: transformers removes those that are there.

    files: bytes of the stored tensors by file.
    """
    module.save_pretrained(folder, state_dict={})
    if len(files) > 1:
        (folder / INDEX).write_text(index_text(files))


def absent_files(names: Collection[str]) -> list[str]:
    """Return which files of a model are missing among the names of a folder's or manifest's."""
    if WHOLE in names:
        return []
    parts = [match for name in names if (match := _PART.fullmatch(name))]
    if not parts:
        return [WHOLE]
    wanted = [INDEX, *file_names(max(int(match[2]) for match in parts))]
    return [name for name in wanted if name not in names]


def tensor_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model in a local folder."""
    index = folder / INDEX
    if not index.exists():
        return [folder / WHOLE]
    return [folder / name for name in indexed_files(index.read_bytes())]


def indexed_files(index: bytes) -> list[str]:
    """Return the names of the files in an index."""
    return sorted(set(parse_json(index)["weight_map"].values()))


def safetensors_header(tensors: Iterable[tuple[str, TensorInfo]]) -> bytes:
    """Return what a safetensors file begins with; the tensors' bytes follow it in this order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, info in tensors:
        start, end = end, end + info.size_bytes
        header[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def cut_in_order(sizes: Mapping[str, int], most_bytes: int) -> list[Sequence[str]]:
    """Cut names, in order, into lists of at most `most_bytes`, or of one name that is larger."""
    lists: list[list[str]] = []
    load = 0
    for name, size in sizes.items():
        if not lists or load + size > most_bytes:
            lists.append([])
            load = 0
        lists[-1].append(name)
        load += size
    return list(lists)
