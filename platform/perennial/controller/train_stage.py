"""Running one job with its news going to the person and to MLflow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from perennial.controller.context import Workspace
from perennial.errors import Superseded, TrainingFailed
from perennial.runs.ledger import now
from perennial.runs.metrics import metrics, stored_rows
from perennial.runs.worker_starts import Start, note_start

if TYPE_CHECKING:
    from perennial.training.job import Job
    from perennial.training.launcher import Progress


def train(work: Workspace, job: Job) -> str:
    """Train a job to its end; the key of its last checkpoint.

    Raises Superseded when somebody else took the job over meanwhile.
    """
    from perennial.training.launcher import run_job

    run = work.tracker.child(job.name, run_id=job.tracking_run)

    def on_progress(progress: Progress) -> None:
        work.narrator.news(job, progress)
        work.instruments.progress(job, progress)
        for step, workers in progress.started:
            note_start(work.store, job.folder, Start(now(), step, workers))
        for line in progress.notices:
            work.narrator.say(f"{job.name}: {line}")
        if progress.failed_saves:
            count = float(len(progress.failed_saves))
            run.log(progress.failed_saves[-1], {"train/failed_checkpoints": count})
        for row in progress.rows:
            if "spike" in row:
                work.narrator.say(f"{job.name}: step {row['step']}: {row['spike']}; ignored")
        for told in progress.skipped:
            work.narrator.say(f"{job.name}: {told}")
        if progress.rows:
            at_ms = int(time.time() * 1000)
            run.log_rows(metrics(job, progress.rows, at_ms), job.tokens_per_step)

    # What an MLflow that was down, or a kill, kept from it; it leaves out what it has.
    run.log_rows(stored_rows(work.store, job.folder, job.tokens_per_step), job.tokens_per_step)
    work.instruments.begin()
    work.narrator.begin(job)
    try:
        checkpoint = run_job(job, on_progress)
    except TrainingFailed:
        if job.may_commit(work.store):
            raise
        raise Superseded(f"another process took {job.name} over; this one stops") from None
    work.narrator.end(job)
    return checkpoint
