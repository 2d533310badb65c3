"""Weighted average of stored models, in 32 bits and constant memory.

A file of sums takes 4 bytes a parameter of the disk; one checkpoint after the other is fetched,
added to it and removed, a chunk at a time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from perennial.errors import InputError
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
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class _Tensor(NamedTuple):
    """A tensor in a local safetensors file, at `start`."""

    file: Path
    start: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return self.size_bytes // np.dtype(_FLOATS[self.dtype]).itemsize


def is_weights(name: str) -> bool:
    """Return whether a checkpoint's file is the model's weights, or the index of its files."""
    return name == INDEX or (
        name.endswith(".safetensors") and not name.startswith(checkpoints.OPTIMIZER)
    )


def write_average(store: Store, weights: Mapping[str, float], target: Path) -> None:
    """Write the weighted average of checkpoints' models to a local folder.

    The files are those of the last checkpoint, name by name, and so is what is no floating-point
    number. Each is sum(weight * tensor) / sum(weight) in 32 bits, in the order given, rounded to
    the precision in which it is stored.

    Args:
        store: the run's store.
        weights: by key of the checkpoint, above 0, in proportion to each other.
        target: local folder; must exist.

    Raises:
        Damaged: a file is missing or was altered.
        InputError: a checkpoint is gone, or two of them have different tensors.
    """
    with tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
        sums, model = Path(scratch, "sums"), Path(scratch, "model")
        tensors: dict[str, _Tensor] = {}
        for key, weight in weights.items():
            before = tensors
            shutil.rmtree(model, ignore_errors=True)
            tensors = _fetch(store, key, model)
            if before and not _alike(before, tensors):
                raise _refused(key, f"it has other tensors than {next(iter(weights))}")
            _add(sums, tensors, weight, first=not before)
        _finish(sums, tensors, sum(weights.values()))
        for path in model.iterdir():
            shutil.move(path, target / path.name)


def _alike(one: Mapping[str, _Tensor], other: Mapping[str, _Tensor]) -> bool:
    kinds = [{n: (t.dtype, t.shape) for n, t in model.items()} for model in (one, other)]
    return kinds[0] == kinds[1]


def _fetch(store: Store, key: str, folder: Path) -> dict[str, _Tensor]:
    """Copy the weights of a checkpoint to a local folder; return its tensors in order of names."""
    folder.mkdir()
    try:
        manifest = checkpoints.read_manifest(store, key)
    except FileNotFoundError:
        raise _refused(key, "it is gone: retention removed it meanwhile") from None
    names = [name for name in manifest.files if is_weights(name)]
    checkpoints.download(store, key, manifest, names, folder)
    tensors = {name: tensor for file in tensor_files(folder) for name, tensor in _header(file)}
    return dict(sorted(tensors.items()))


def _header(file: Path) -> Iterator[tuple[str, _Tensor]]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        header = parse_json(stream.read(length))
    for name, info in header.items():
        if name != "__metadata__":
            start, end = info["data_offsets"]
            place = _LENGTH_BYTES + length + start
            yield name, _Tensor(file, place, end - start, info["dtype"], tuple(info["shape"]))


def _add(sums: Path, tensors: Mapping[str, _Tensor], weight: float, *, first: bool) -> None:
    """Add a model times its weight to the file of sums."""
    sums.touch()
    with sums.open("r+b") as so_far:
        for chunk in _chunks(tensors):
            values = _read(chunk) * np.float32(weight)
            if not first:
                place = so_far.tell()
                values = np.frombuffer(so_far.read(values.nbytes), np.float32) + values
                so_far.seek(place)
            so_far.write(values.tobytes())


def _finish(sums: Path, tensors: Mapping[str, _Tensor], total: float) -> None:
    """Put the sums, divided by the sum of the weights, in the place of a model's tensors."""
    with sums.open("rb") as so_far:
        for chunk in _chunks(tensors):
            size = chunk.numbers * np.dtype(np.float32).itemsize
            mean = np.frombuffer(so_far.read(size), np.float32) / np.float32(total)
            with chunk.file.open("r+b") as stream:
                stream.seek(chunk.start)
                stream.write(_stored(mean, chunk.dtype))


def _chunks(tensors: Mapping[str, _Tensor]) -> Iterator[_Tensor]:
    """Yield the floating-point tensors in pieces of a bounded size."""
    for tensor in tensors.values():
        if tensor.dtype not in _FLOATS:
            continue
        width = np.dtype(_FLOATS[tensor.dtype]).itemsize
        for start in range(0, tensor.size_bytes, _CHUNK * width):
            size = min(_CHUNK * width, tensor.size_bytes - start)
            yield tensor._replace(start=tensor.start + start, size_bytes=size)


def _read(chunk: _Tensor) -> Floats:
    with chunk.file.open("rb") as stream:
        stream.seek(chunk.start)
        stored = np.frombuffer(stream.read(chunk.size_bytes), _FLOATS[chunk.dtype])
    if chunk.dtype == "BF16":
        return (stored.astype("<u4") << 16).view("<f4")
    return stored.astype("<f4")


def _stored(values: Floats, dtype: str) -> bytes:
    """Return numbers in the precision of a tensor, rounded to the nearest, to even in a tie."""
    if dtype != "BF16":
        return values.astype(_FLOATS[dtype]).tobytes()
    bits = values.view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2").tobytes()


def _refused(key: str, problem: str) -> InputError:
    return InputError(
        "store",
        key,
        f"no average can be made with it: {problem}",
        "average fewer checkpoints, or those before another one with --from",
        code="average-impossible",
    )
