"""The models and the corpus of the training benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from perennial.config.training import ModelSpec, TrainingSpec
from perennial.mixture import Source, StageMix
from perennial.mixture.row_reader import CorpusLayout
from perennial.schedules import ConstantSchedule
from perennial.training.job import Job

VOCABULARY = 4096
ETA = 1e-3
_WIDTHS = {"small": (128, 4, 4), "20M": (448, 7, 7), "70M": (768, 9, 12)}
"""hidden size, layers, heads; small is the quickstart's 1.8M parameters"""
_BATCHES = {"small": (16, 8, 256), "20M": (4, 2, 256), "70M": (4, 1, 128)}
"""global batch, micro batch, sequence length"""
MODELS = tuple(_WIDTHS)


def model_spec(model: str) -> ModelSpec:
    width, layers, heads = _WIDTHS[model]
    config = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return ModelSpec(architecture="gpt_neox", config=config)


Workers = int | dict[str, int]
"""How many, or `{"min": 1, "max": 2}`."""


def training_spec(model: str, workers: Workers, checkpoint_steps: int = 10**6) -> TrainingSpec:
    batch, micro, _ = _BATCHES[model]
    return TrainingSpec.model_validate(
        {
            "workers": workers,
            "cpus_per_worker": 0.8,
            "global_batch": batch,
            "micro_batch": micro,
            "checkpoint_every": f"{checkpoint_steps} steps",
            "spikes": {"policy": "ignore"},
        }
    )


def sequence_length(model: str) -> int:
    return _BATCHES[model][2]


def tokens_of(model: str, steps: int) -> np.ndarray:
    """Token ids `(rows, sequence)` of so many steps."""
    rows = steps * _BATCHES[model][0]
    shape = (rows, sequence_length(model))
    return np.random.default_rng(1).zipf(1.3, shape).clip(1, VOCABULARY - 1).astype("<u2")


def write_job(
    folder: Path, model: str, workers: Workers, steps: int, checkpoint_steps: int = 10**6
) -> Job:
    """A job over a corpus of one shard, written into a store in `folder`."""
    from perennial.corpora.packing import RowFile, rows_per_group

    length, tokens = sequence_length(model), tokens_of(model, steps)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "shard.parquet").open("wb") as stream:
        file, group = RowFile(stream, length, 2), rows_per_group(length, 2)
        for first in range(0, len(tokens), group):
            file.write(tokens[first : first + group])
        file.close()
    training = training_spec(model, workers, checkpoint_steps)
    fields: dict[str, Any] = {
        "store_url": str(folder),
        "name": "bench",
        "folder": "checkpoints/bench",
        "mix": StageMix(
            "bench", steps, training.global_batch, (Source("bench", len(tokens), 0, len(tokens)),)
        ),
        "layouts": {"bench": CorpusLayout(("shard.parquet",), (len(tokens),))},
        "first_step": 0,
        "start": None,
        "schedule": ConstantSchedule(ETA),
        "model": model_spec(model),
        "training": training,
        "sequence_length": length,
        "vocabulary": VOCABULARY,
        "end_of_document": 0,
        "dtype": "<u2",
        "seed": 1,
    }
    return Job(**fields)
