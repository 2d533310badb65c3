"""What a worker group does between two jobs: it waits for the next one, or goes."""

from __future__ import annotations

import time
from typing import Any

import ray
import torch.distributed as dist

from perennial.training.job import Job
from perennial.training.ray.preemption import is_ending

_POLL_SECONDS = 0.1


def await_job(driver: Any) -> Job | None:
    """Return the job that the driver has for the group; None when the group ends without one.

    A collective: rank 0 asks, and the ranks agree. A machine that goes ends the wait, and so does
    the driver, or the time that workers may wait.

    Args:
        driver: handle of the driver's progress actor.
    """
    while True:
        jobs: list[Any] = [None]
        if dist.get_rank() == 0:
            jobs[0] = ray.get(driver.read_job.remote())
        dist.broadcast_object_list(jobs, src=0)
        if jobs[0] is not None:
            return Job.from_dict(jobs[0])
        if not _may_wait(driver):
            return None
        if dist.get_rank() == 0:
            time.sleep(_POLL_SECONDS)


def _may_wait(driver: Any) -> bool:
    """Return, the same on every rank, whether to go on waiting."""
    endings = [False] * dist.get_world_size()
    dist.all_gather_object(endings, is_ending())
    answer: list[bool] = [True]
    if dist.get_rank() == 0:
        if any(endings):
            # A job that was offered meanwhile is begun; its first steps find the same out, and
            # save before they end.
            answer[0] = ray.get(driver.let_go.remote()) is not None
        else:
            answer[0] = ray.get(driver.may_wait.remote())
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def end_job(driver: Any, is_done: bool) -> bool:
    """Tell the driver of a job's end; return whether the group may train another one.

    A collective.

    Args:
        driver: handle of the driver's progress actor.
        is_done: whether this rank stored the job's last step.
    """
    done = [False] * dist.get_world_size()
    dist.all_gather_object(done, is_done)
    if not all(done):
        return False
    if dist.get_rank() == 0:
        ray.get(driver.end_job.remote())
    return True
