"""Where training goes on: the latest sound checkpoint, the same on every rank."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from perennial.store import Store
from perennial.training import checkpoint as checkpoints
from perennial.training.checkpoint import METRICS, CheckpointManifest, Damaged
from perennial.training.job import Job


class StartDamaged(Exception):
    """The checkpoint that the job starts from is damaged; an earlier one would be another trunk."""


@dataclass(frozen=True)
class Start:
    """Where the job goes on.

    step: trunk step.
    folder: local files of the checkpoint; None for random weights.
    optimizer_steps: steps that the moments have taken; None when they start from zero.
    resumed: whether the checkpoint is the job's own.
    """

    step: int
    folder: Path | None = None
    optimizer_steps: int | None = None
    resumed: bool = False

    @property
    def history(self) -> Path | None:
        """Metrics of the steps before `step`."""
        return self.folder / METRICS if self.folder and self.resumed else None

    def last_rows(self, count: int) -> list[dict[str, Any]]:
        """The last `count` steps' rows before `step`; fewer where there are fewer."""
        if self.history is None:
            return []
        with self.history.open() as lines:
            return [json.loads(line) for line in deque(lines, maxlen=count)]


@dataclass(frozen=True)
class _Problem:
    """What one rank found wrong."""

    text: str
    vanished: bool


def fetch_start(job: Job, store: Store, scratch: Path, tap: Any) -> Start:
    """Download the latest checkpoint that is sound on every rank; all ranks call together.

    A damaged one is told, set aside and the one before taken; without any, the job begins again.
    Raises StartDamaged when what the job itself starts from is damaged.
    """
    while (step := _latest(job, store)) is not None:
        key = checkpoints.folder_of(job.folder, step)
        problems, start = _agree(job, store, key, scratch / key, resumed=True)
        if not problems:
            assert start is not None
            return start
        if dist.get_rank() == 0 and not any(problem.vanished for problem in problems):
            checkpoints.quarantine(store, key)
            before = checkpoints.latest_step(store, job.folder)
            where = "its beginning" if before is None else f"the checkpoint of step {before:,}"
            tap.notice.remote(f"{problems[0].text}; going on from {where}")
        dist.barrier()
    if job.start is None:
        return Start(job.first_step)
    problems, start = _agree(job, store, job.start, scratch / job.start, resumed=False)
    if problems:
        raise StartDamaged(
            f"{problems[0].text}; {job.name} starts from there, so restore that file from a copy"
        )
    assert start is not None
    return start


def _latest(job: Job, store: Store) -> int | None:
    """Rank 0 asks the store, the others are told."""
    chosen: list[int | None] = [None]
    if dist.get_rank() == 0:
        chosen[0] = checkpoints.latest_step(store, job.folder)
    dist.broadcast_object_list(chosen, src=0)
    return chosen[0]


def _agree(
    job: Job, store: Store, key: str, folder: Path, *, resumed: bool
) -> tuple[list[_Problem], Start | None]:
    """Try on every rank; what any found wrong."""
    problem, start = None, None
    try:
        manifest = checkpoints.read_manifest(store, key)
        start = _fetch(job, store, key, manifest, folder, resumed)
    except FileNotFoundError:  # retention of a group that still lives, or another rank's quarantine
        problem = _Problem(f"{key}/{checkpoints.MANIFEST} is missing", vanished=True)
    except Damaged as damaged:
        problem = _Problem(str(damaged), vanished=False)
    told: list[_Problem | None] = [None] * dist.get_world_size()
    dist.all_gather_object(told, problem)
    return [each for each in told if each is not None], start


def _fetch(
    job: Job,
    store: Store,
    key: str,
    manifest: CheckpointManifest,
    folder: Path,
    resumed: bool,
) -> Start:
    with_moments = resumed or job.optimizer != "reset"
    names = [n for n in manifest.files if with_moments or not n.startswith("optimizer-")]
    checkpoints.download(store, key, manifest, names, folder)
    return Start(
        manifest.step if resumed else job.first_step,
        folder,
        manifest.optimizer_steps if with_moments else None,
        resumed,
    )
