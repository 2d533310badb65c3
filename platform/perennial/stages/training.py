"""Running one job with its news going to the person and to MLflow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from perennial.stages.workspace import Workspace

if TYPE_CHECKING:
    from perennial.training.job import Job
    from perennial.training.trainer import Progress


def train(work: Workspace, job: Job) -> str:
    """Train a job to its end; the key of its last checkpoint."""
    from perennial.training.trainer import run_job

    run = work.tracker.child(job.name, run_id=job.tracking_run)

    def on_progress(progress: Progress) -> None:
        work.narrator.news(job, progress)
        if progress.rows:
            at = int(time.time() * 1000)
            run.log_rows([(row["step"], at, _metrics(job, row)) for row in progress.rows])

    work.narrator.begin(job)
    checkpoint = run_job(job, on_progress)
    work.narrator.end(job)
    return checkpoint


def _metrics(job: Job, row: dict[str, float]) -> dict[str, float]:
    return {
        "train/loss": row["loss"],
        "train/eta": row["eta"],
        "train/tokens_per_second": row["tokens_per_second"],
        "train/tokens_seen": row["step"] * job.tokens_per_step,
    }
