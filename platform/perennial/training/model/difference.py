"""Measure by how much the weights of two checkpoints differ."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perennial.errors import InputError
from perennial.store import Store
from perennial.training.model.tensor_chunks import (
    are_alike,
    cut_in_chunks,
    fetch_tensors,
    read_chunk,
)


@dataclass(frozen=True)
class WeightDifference:
    """The difference of two models of one shape.

    largest: of the absolute differences of single weights.
    relative: norm of the difference, in proportion to the norm of the first model.
    """

    largest: float
    relative: float


def measure_difference(store: Store, key: str, other: str) -> WeightDifference:
    """Return by how much the models of two checkpoints differ, read a chunk at a time.

    Args:
        store: the run's store.
        key: of the first checkpoint.
        other: key of the second one.

    Raises:
        Damaged: a file is missing or was altered.
        InputError: they have different tensors.
    """
    with tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
        models = [
            fetch_tensors(store, model, Path(scratch, str(number)))
            for number, model in enumerate((key, other))
        ]
        if not are_alike(*models):
            raise InputError(
                other, "", f"it has tensors of other names, shapes or precisions than {key}",
                "keep the versions under which it was trained", code="upgrade-other-tensors",
            )  # fmt: skip
        largest = squares = apart = 0.0
        for one, two in zip(*(cut_in_chunks(model) for model in models), strict=True):
            first, second = (read_chunk(chunk).astype(np.float64) for chunk in (one, two))
            largest = max(largest, float(np.abs(first - second).max(initial=0.0)))
            squares += float(np.square(first).sum())
            apart += float(np.square(first - second).sum())
    return WeightDifference(largest, math.sqrt(apart / squares) if squares else 0.0)
