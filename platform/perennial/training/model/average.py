"""Weighted average of stored models, in 32 bits and constant memory.

A file of sums takes 4 bytes a parameter of the disk; one checkpoint after the other is fetched,
added to it and removed, a chunk at a time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perennial.errors import InputError
from perennial.store import Store
from perennial.training.model.tensor_chunks import (
    FLOATS,
    StoredTensor,
    are_alike,
    cut_in_chunks,
    fetch_tensors,
    read_chunk,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


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
        tensors: dict[str, StoredTensor] = {}
        for key, weight in weights.items():
            before = tensors
            shutil.rmtree(model, ignore_errors=True)
            tensors = _fetch(store, key, model)
            if before and not are_alike(before, tensors):
                raise _refused(key, f"it has other tensors than {next(iter(weights))}")
            _add(sums, tensors, weight, first=not before)
        _finish(sums, tensors, sum(weights.values()))
        for path in model.iterdir():
            shutil.move(path, target / path.name)


def _fetch(store: Store, key: str, folder: Path) -> dict[str, StoredTensor]:
    """Copy the weights of a checkpoint to a local folder; return its tensors in order of names."""
    try:
        return fetch_tensors(store, key, folder)
    except FileNotFoundError:
        raise _refused(key, "it is gone: retention removed it meanwhile") from None


def _add(sums: Path, tensors: Mapping[str, StoredTensor], weight: float, *, first: bool) -> None:
    """Add a model times its weight to the file of sums."""
    sums.touch()
    with sums.open("r+b") as so_far:
        for chunk in cut_in_chunks(tensors):
            values = read_chunk(chunk) * np.float32(weight)
            if not first:
                place = so_far.tell()
                values = np.frombuffer(so_far.read(values.nbytes), np.float32) + values
                so_far.seek(place)
            so_far.write(values.tobytes())


def _finish(sums: Path, tensors: Mapping[str, StoredTensor], total: float) -> None:
    """Put the sums, divided by the sum of the weights, in the place of a model's tensors."""
    with sums.open("rb") as so_far:
        for chunk in cut_in_chunks(tensors):
            size = chunk.numbers * np.dtype(np.float32).itemsize
            mean = np.frombuffer(so_far.read(size), np.float32) / np.float32(total)
            with chunk.file.open("r+b") as stream:
                stream.seek(chunk.start)
                stream.write(_stored(mean, chunk.dtype))


def _stored(values: Floats, dtype: str) -> bytes:
    """Return numbers in the precision of a tensor, rounded to the nearest, to even in a tie."""
    if dtype != "BF16":
        return values.astype(FLOATS[dtype]).tobytes()
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
