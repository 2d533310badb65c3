"""Train one job; observers follow it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from perennial.controller.context import Workspace
from perennial.errors import Superseded, TrainingFailed

if TYPE_CHECKING:
    from perennial.training.job import Job
    from perennial.training.launcher import Meanwhile
    from perennial.training.ray.progress_actor import Progress


def train(work: Workspace, job: Job) -> str:
    """Train a job that is no stage of the trunk to its last step.

    Args:
        work: the run.
        job: the job.

    Returns:
        The key of its last checkpoint.

    Raises:
        Superseded: another process took the job over meanwhile.
        TrainingFailed: the worker group gave up.
    """
    from perennial.training.launcher import run_job

    def start(on_progress: Callable[[Progress], None]) -> str:
        work.workers.let_go()
        return run_job(job, on_progress)

    return _observed(work, job, start)


def _go_on() -> bool:
    return True


def train_trunk(work: Workspace, job: Job, meanwhile: Meanwhile = _go_on) -> str | None:
    """Train a stage of the trunk, whose workers stay for the next one.

    Args:
        work: the run.
        job: the job.
        meanwhile: called again and again while it trains; False ends it.

    Returns:
        The key of its last checkpoint; None where `meanwhile` ended it.

    Raises:
        Superseded: another process took the job over meanwhile.
        TrainingFailed: the worker group gave up.
    """
    # What is written meanwhile, and what is shown of the progress, is of one state of the run.
    one_at_a_time = threading.Lock()

    def start(on_progress: Callable[[Progress], None]) -> str | None:
        def show(progress: Progress) -> None:
            with one_at_a_time:
                on_progress(progress)

        def look() -> bool:
            with one_at_a_time:
                return meanwhile()

        return work.workers.train(job, show, look)

    return _observed(work, job, start)


_End = TypeVar("_End", str, str | None)


def _observed(
    work: Workspace, job: Job, start: Callable[[Callable[[Progress], None]], _End]
) -> _End:
    """Train a job by `start`, which is given what shows its progress; observers follow it."""

    def on_progress(progress: Progress) -> None:
        work.notify(lambda observer: observer.job_progressed(work, job, progress))
        for line in _lines(progress):
            work.log(f"{job.name}: {line}")

    work.notify(lambda observer: observer.job_began(work, job))
    try:
        end = start(on_progress)
    except TrainingFailed:
        if job.may_commit(work.store):
            raise
        raise Superseded(f"another process took {job.name} over; this one stops") from None
    if end is not None:
        work.notify(lambda observer: observer.job_ended(work, job))
    return end


def _lines(progress: Progress) -> Iterator[str]:
    """Yield what a user should know of a job besides its steps."""
    yield from progress.notices
    for row in progress.rows:
        if "spike" in row:
            yield f"step {row['step']}: {row['spike']}; ignored"
    yield from progress.skipped
