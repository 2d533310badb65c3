"""Tensors of stored models, read a chunk at a time without the libraries that compute with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from perennial.store import Store
from perennial.store.stored_json import parse_json
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.model.shards import INDEX, tensor_files

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

_CHUNK = 1 << 22
"""numbers that are in memory at once"""
_LENGTH_BYTES = 8
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""numpy's names of the precisions in which floating-point tensors are stored"""


class StoredTensor(NamedTuple):
    """A tensor in a local safetensors file, at `start`."""

    file: Path
    start: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """Return the number of its elements."""
        return self.size_bytes // np.dtype(FLOATS[self.dtype]).itemsize


def is_weights(name: str) -> bool:
    """Return whether a checkpoint's file is the model's weights, or the index of its files."""
    return name == INDEX or (
        name.endswith(".safetensors") and not name.startswith(checkpoints.OPTIMIZER)
    )


def are_alike(one: Mapping[str, StoredTensor], other: Mapping[str, StoredTensor]) -> bool:
    """Return whether two models have tensors of the same names, shapes and precisions."""
    kinds = [{n: (t.dtype, t.shape) for n, t in model.items()} for model in (one, other)]
    return kinds[0] == kinds[1]


def fetch_tensors(store: Store, key: str, folder: Path) -> dict[str, StoredTensor]:
    """Copy the weights of a checkpoint to a local folder; return its tensors in order of names.

    Args:
        store: the run's store.
        key: of the checkpoint.
        folder: local folder; must not exist.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        Damaged: a file is missing or was altered.
    """
    folder.mkdir()
    manifest = checkpoints.read_manifest(store, key)
    names = [name for name in manifest.files if is_weights(name)]
    checkpoints.download(store, key, manifest, names, folder)
    tensors = {name: tensor for file in tensor_files(folder) for name, tensor in _header(file)}
    return dict(sorted(tensors.items()))


def _header(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        header = parse_json(stream.read(length))
    for name, info in header.items():
        if name != "__metadata__":
            start, end = info["data_offsets"]
            place = _LENGTH_BYTES + length + start
            yield name, StoredTensor(file, place, end - start, info["dtype"], tuple(info["shape"]))


def cut_in_chunks(tensors: Mapping[str, StoredTensor]) -> Iterator[StoredTensor]:
    """Yield the floating-point tensors in pieces of a bounded size."""
    for tensor in tensors.values():
        if tensor.dtype not in FLOATS:
            continue
        width = np.dtype(FLOATS[tensor.dtype]).itemsize
        for start in range(0, tensor.size_bytes, _CHUNK * width):
            size = min(_CHUNK * width, tensor.size_bytes - start)
            yield tensor._replace(start=tensor.start + start, size_bytes=size)


def read_chunk(chunk: StoredTensor) -> Floats:
    """Return the numbers of a chunk in 32 bits."""
    with chunk.file.open("rb") as stream:
        stream.seek(chunk.start)
        stored = np.frombuffer(stream.read(chunk.size_bytes), FLOATS[chunk.dtype])
    if chunk.dtype == "BF16":
        return (stored.astype("<u4") << 16).view("<f4")
    return stored.astype("<f4")
