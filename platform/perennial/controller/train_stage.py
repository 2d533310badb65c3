"""Train one job; observers follow it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perennial.controller.context import Workspace
from perennial.errors import Superseded, TrainingFailed

if TYPE_CHECKING:
    from perennial.training.job import Job
    from perennial.training.ray.progress_actor import Progress


def train(work: Workspace, job: Job, *, is_trunk: bool = False) -> str:
    """Train a job to its last step.

    Args:
        work: the run.
        job: the job.
        is_trunk: whether it is a stage of the trunk, whose workers stay for the next one.

    Returns:
        The key of its last checkpoint.

    Raises:
        Superseded: another process took the job over meanwhile.
        TrainingFailed: the worker group gave up.
    """
    from perennial.training.launcher import run_job

    def on_progress(progress: Progress) -> None:
        work.notify(lambda observer: observer.job_progressed(work, job, progress))
        for line in _lines(progress):
            work.log(f"{job.name}: {line}")

    work.notify(lambda observer: observer.job_began(work, job))
    try:
        if is_trunk:
            checkpoint = work.workers.train(job, on_progress)
        else:
            work.workers.let_go()
            checkpoint = run_job(job, on_progress)
    except TrainingFailed:
        if job.may_commit(work.store):
            raise
        raise Superseded(f"another process took {job.name} over; this one stops") from None
    work.notify(lambda observer: observer.job_ended(work, job))
    return checkpoint


def _lines(progress: Progress) -> Iterator[str]:
    """Yield what a user should know of a job besides its steps."""
    yield from progress.notices
    for row in progress.rows:
        if "spike" in row:
            yield f"step {row['step']}: {row['spike']}; ignored"
    yield from progress.skipped
