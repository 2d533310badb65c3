"""Joining a Ray cluster, or starting a local one."""

from __future__ import annotations

import logging
import os

from perennial.config.training import TrainingSpec
from perennial.errors import InputError

_READER_SHARE = 0.1
"""CPUs that the reader of one worker needs beside it; see `perennial.mixture.ray_stream`."""


def use_ray(training: TrainingSpec) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start one on this machine; once a process.

    Raises InputError when this machine alone cannot hold the workers, which would wait for ever.
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


def check_concurrent(where: str, training: TrainingSpec, concurrent: int) -> None:
    """Refuse more trials at a time than this machine can hold, unless a cluster was named.

    Ray would start them all, and each would wait for workers that another one holds.
    """
    if "RAY_ADDRESS" in os.environ:
        return
    cpus = os.cpu_count() or 1
    each = training.workers.min * (training.cpus_per_worker + _READER_SHARE)
    if concurrent > 1 and concurrent * each > cpus + 1e-9:
        raise InputError(
            where,
            "concurrent",
            f"{concurrent} trials of {each:g} CPUs each need {concurrent * each:g} CPUs, this "
            f"machine has {cpus}",
            f"give at most {max(1, int(cpus / each))}, or set RAY_ADDRESS",
            code="machine-too-small",
        )


def check_fits(training: TrainingSpec, cpus: int) -> None:
    """Refuse workers that this machine cannot hold, unless a cluster was named."""
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
