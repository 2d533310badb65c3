"""Connect to a Ray cluster, or start one; the trunk's workers on it, and room beside them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from perennial.config.training import TrainingSpec
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.training.job import Job
    from perennial.training.launcher import KeptWorkers, Meanwhile
    from perennial.training.ray.progress_actor import Progress

_READER_SHARE = 0.1
"""CPUs that a worker's reader needs in addition; see `perennial.mixture.ray_stream`."""


def use_ray(training: TrainingSpec) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start one on this machine; once per process.

    Raises:
        InputError: this machine alone cannot hold the workers; Ray would wait without an end.
    """
    check_fits(training, os.cpu_count() or 1)
    import ray

    if ray.is_initialized():
        return
    # One node's own files; a preserved dashboard or usage report would only cost start-up time.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    local = "RAY_ADDRESS" not in os.environ
    ray.init(
        address="local" if local else None,
        include_dashboard=False if local else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def describe_shortage() -> str:
    """Return why a task of one CPU would wait on the cluster in use; "" where one is free."""
    import ray

    if ray.available_resources().get("CPU", 0) >= 1:
        return ""
    cpus = ray.cluster_resources().get("CPU", 0)
    return f"the Ray cluster has {cpus:g} CPUs and none is free: tasks wait until one is"


def check_concurrent(where: str, training: TrainingSpec, concurrent: int) -> None:
    """Raise InputError for more concurrent trials than this machine can hold.

    Ray would start them all, and they would never stop waiting for the workers of others. A cluster
    that RAY_ADDRESS names is not checked: it may grow.

    Args:
        where: the tuning file, for the message.
        training: workers and CPUs of one trial.
        concurrent: number of trials at a time.
    """
    if "RAY_ADDRESS" in os.environ:
        return
    cpus = os.cpu_count() or 1
    trial_cpus = training.workers.min * (training.cpus_per_worker + _READER_SHARE)
    if concurrent > 1 and concurrent * trial_cpus > cpus + 1e-9:
        raise InputError(
            where,
            "concurrent",
            f"{concurrent} trials of {trial_cpus:g} CPUs each need "
            f"{concurrent * trial_cpus:g} CPUs, this machine has {cpus}",
            f"give at most {max(1, int(cpus / trial_cpus))}, or set RAY_ADDRESS",
            code="machine-too-small",
        )


def check_fits(training: TrainingSpec, cpus: int) -> None:
    """Raise InputError for workers that this machine cannot hold, unless a cluster is named.

    Args:
        training: workers, and CPUs for each.
        cpus: number of CPUs of this machine.
    """
    if "RAY_ADDRESS" in os.environ:
        return
    workers = training.workers.min
    needed = workers * (training.cpus_per_worker + _READER_SHARE)
    if needed > cpus + 1e-9:
        raise InputError(
            "run file",
            "training.workers",
            f"{workers} workers of {training.cpus_per_worker:g} CPUs and their readers "
            f"({_READER_SHARE:g} each) need {needed:g} CPUs, this machine has {cpus}",
            "lower training.workers or training.cpus_per_worker, or set RAY_ADDRESS",
            code="machine-too-small",
        )


class TrunkWorkers:
    """Trains stages, in the workers of the stage before where those still wait."""

    def __init__(self) -> None:
        """Begin without workers; Ray is not loaded before there is a stage to train."""
        self._kept: KeptWorkers | None = None

    def train(
        self, job: Job, on_progress: Callable[[Progress], None], meanwhile: Meanwhile
    ) -> str | None:
        """Train a stage's job, as `KeptWorkers.run_job` does."""
        from perennial.training.launcher import KeptWorkers

        self._kept = self._kept or KeptWorkers("trunk")
        return self._kept.run_job(job, on_progress, 60 * job.training.idle_minutes, meanwhile)

    def let_go(self) -> None:
        """End workers that wait, and return when their room is free."""
        if self._kept is not None:
            self._kept.let_go()

    def leave(self) -> None:
        """Let workers that wait end by themselves."""
        if self._kept is not None:
            self._kept.leave()

    def make_room(self, gpus: int = 0) -> float:
        """Return the CPUs that a task may reserve, with room for it beside workers that wait.

        Those do not compute, and what their readers reserve is free: a task that reserves as little
        has room wherever the workers have. Where its GPUs are theirs, they are let go.

        Args:
            gpus: of the task, where the cluster has any.
        """
        if self._kept is None or not self._kept.are_waiting:
            return 1.0
        import ray

        free = ray.available_resources()
        if ray.cluster_resources().get("GPU") and free.get("GPU", 0) < gpus:
            self.let_go()
            return 1.0
        return 1.0 if free.get("CPU", 0) >= 1 else _READER_SHARE
