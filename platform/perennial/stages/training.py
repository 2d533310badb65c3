"""Running one job with its news going to the person and to MLflow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perennial.stages.workspace import Superseded, Workspace
from perennial.training.meter import shares

if TYPE_CHECKING:
    from perennial.training.job import Job
    from perennial.training.trainer import Progress


def train(work: Workspace, job: Job) -> str:
    """Train a job to its end; the key of its last checkpoint.

    Raises Superseded when somebody else took the job over meanwhile.
    """
    from perennial.training.trainer import TrainingFailed, run_job

    run = work.tracker.child(job.name, run_id=job.tracking_run)

    def on_progress(progress: Progress) -> None:
        work.narrator.news(job, progress)
        for row in progress.rows:
            if "spike" in row:
                work.narrator.say(f"{job.name}: step {row['step']}: {row['spike']}; ignored")
        if progress.rows:
            run.log_rows(metrics(job, progress.rows, int(time.time() * 1000)))

    work.narrator.begin(job)
    try:
        checkpoint = run_job(job, on_progress)
    except TrainingFailed:
        if job.may_commit(work.store):
            raise
        raise Superseded(f"another process took {job.name} over; this one stops") from None
    work.narrator.end(job)
    return checkpoint


Points = tuple[int, int, dict[str, float]]


def metrics(job: Job, rows: Sequence[dict[str, Any]], at_ms: int) -> list[Points]:
    """MLflow's metrics of finished steps: each step's, and at the last one the shares of time.

    The shares are over all the rows that arrived together: of single steps they would be most of
    what MLflow has to store.
    """
    points = [(row["step"], at_ms, _of_step(job, row)) for row in rows]
    last, _, values = points[-1]
    parts = shares([row["seconds"] for row in rows])
    points[-1] = (last, at_ms, values | {f"time/{part}": share for part, share in parts.items()})
    return points


def _of_step(job: Job, row: dict[str, Any]) -> dict[str, float]:
    return {
        "train/loss": row["loss"],
        "train/eta": row["eta"],
        "train/gradient_norm": row["gradient_norm"],
        "train/tokens_per_second": row["tokens_per_second"],
        "train/tokens_seen": row["step"] * job.tokens_per_step,
        **({"train/spikes": row["spikes"]} if "spikes" in row else {}),
    }
