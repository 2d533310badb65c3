"""State of a worker at a step of its job: engine, data, and what it must know of the past."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from perennial.mixture.batches import slice_rank_rows
from perennial.mixture.ray_stream import build_rank_dataset, read_step_batches
from perennial.store import Store
from perennial.training.checkpoint.reader import ResumePoint
from perennial.training.checkpoint.tensors import weights_are_rounded
from perennial.training.engine.deepspeed_internals import set_loss_scale, whole_shape
from perennial.training.engine.engine import build_engine, load_model
from perennial.training.engine.optimizer_state import (
    forget_direction,
    load_master_weights,
    load_optimizer,
)
from perennial.training.job import Job
from perennial.training.model.growth import vocabulary_weights
from perennial.training.model.initial import new_model
from perennial.training.spikes.skips import read_skips


def batches_from(
    store: Store, job: Job, mix_step: int, rank: int, world_size: int
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Return an iterator over the steps of the mix from `mix_step` on.

    It yields the step and the rank's sequences of it, `(sequences, sequence_length)`.
    """
    dtype = np.dtype(job.dtype)
    dataset = build_rank_dataset(
        store,
        job.layouts,
        job.mix,
        job.sequence_length * dtype.itemsize,
        rank=rank,
        world_size=world_size,
        first_step=mix_step,
    )
    tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    mine = slice_rank_rows(job.mix.global_batch, rank, world_size)
    return read_step_batches(tables, mine.stop - mine.start, mix_step, dtype)


def engine_at(job: Job, start: ResumePoint, world_size: int) -> Any:
    """Return the engine with the weights of the checkpoint, of a stored model, or with new ones."""
    folder, training, batch = start.folder or start.initial, job.training, job.mix.global_batch
    model: torch.nn.Module = (
        new_model(job) if folder is None else load_model(folder, training, batch, world_size)
    )
    return build_engine(model, training, batch, world_size, job.end_of_document)


def load_state(engine: Any, job: Job, start: ResumePoint) -> None:
    """Load this rank's part of the fp32 weights, and of the optimizer's state as the stage joins.

    The fp32 weights are the trunk itself, of which the stored model is a rounded copy: they stay
    whatever becomes of the moments.

    Raises:
        Damaged: a file is missing or has another digest than its manifest says.
    """
    if start.loss_scale is not None:
        set_loss_scale(engine, start.loss_scale)
    first_new = {} if start.resumed else _first_new(engine, job)
    if start.optimizer_steps is None:
        if start.exact or (start.folder is not None and weights_are_rounded(start.folder)):
            load_master_weights(engine, start.optimizer_files, first_new)
        return
    config = job.training.optimizer_config
    load_optimizer(engine, config, start.optimizer_files, start.optimizer_steps, first_new)
    if not start.resumed and job.optimizer == "keep-second-moment":
        forget_direction(engine, config)


def _first_new(engine: Any, job: Job) -> dict[str, int]:
    """Return, by weight, the first element of the rows that the job's start does not have."""
    if job.grown_from is None:
        return {}
    weights = vocabulary_weights(engine.module)
    return {
        name: job.grown_from * whole_shape(weight)[1:].numel() for name, weight in weights.items()
    }


@dataclass(frozen=True)
class ResumeState:
    """The past of a job, as far as its worker group must know it besides the weights.

    losses: those of the last steps, in order.
    spikes: number of those that were ignored so far.
    skipped: trunk steps that are not trained: those that their batches would have led to.
    """

    losses: tuple[float, ...]
    spikes: int
    skipped: tuple[int, ...]


def read_resume_state(store: Store, folder: str, last_rows: list[dict[str, Any]]) -> ResumeState:
    """Return a job's state; `last_rows` are the rows of its last steps, in order."""
    rows = [row for row in last_rows if "loss" in row]
    return ResumeState(
        losses=tuple(row["loss"] for row in rows),
        spikes=max((row.get("spikes", 0) for row in rows), default=0),
        skipped=tuple(skip.step for skip in read_skips(store, folder)),
    )
