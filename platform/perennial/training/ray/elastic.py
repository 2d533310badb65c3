"""Policies that decide when a worker group starts again, and with how many workers.

Ray Train decides both from its own view of the cluster. Three changes make its decisions fit a run
whose state is in the store: it looks at the cluster as it is now, a group saves before it grows and
grows where that is worth a restart (`training/growth.py`), and failures are counted since the last
committed checkpoint of the job that is at work. Workers that fail between two jobs are let go: the
next job starts its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray.train import ScalingConfig

from perennial.errors import PerennialError
from perennial.store import open_run_store
from perennial.training.checkpoint.manifest import latest_step
from perennial.training.growth import AT_ONCE, PATIENCE, GrowthDecision
from perennial.training.ray.environment import set_ray_train_defaults
from perennial.training.ray.group_cleanup import GroupCleaner
from perennial.training.ray.hangs import HangWatch
from perennial.training.ray.internals import (
    CurrentResourcesPolicy,
    FailureDecision,
    NoopDecision,
    PolicyTrainer,
    ResettableFailurePolicy,
    ScalingDecision,
)
from perennial.training.ray.machine_watch import GpuCheck, MachineWatch, is_left_out
from perennial.training.ray.preemption import announce_end

if TYPE_CHECKING:
    from perennial.training.job import Job

_RESIZE_CHECK_SECONDS = 5.0
"""Interval at which a healthy worker group checks for more room: one call to an actor."""


class ElasticTrainer(PolicyTrainer):
    """Ray Train's trainer with the policies of this module."""

    def __init__(self, job: Job, name: str, driver: Any, *args: Any, **kwargs: Any) -> None:
        """Create the trainer of a job, and of later ones that need the same workers.

        Args:
            job: what to train first.
            name: of the workers in the run, which a driver that follows a killed one uses too.
            driver: handle of the driver's progress actor.
            args: positional arguments of Ray's `TorchTrainer`.
            kwargs: keyword arguments of it.
        """
        workers, limit_seconds = job.training.workers, 60 * job.training.hang_minutes
        set_ray_train_defaults(limit_seconds, on_gpus=job.training.gpus_per_worker > 0)
        scaling = ScalingConfig(
            num_workers=(workers.min, workers.max) if workers.elastic else workers.max,
            use_gpu=job.training.gpus_per_worker > 0,
            resources_per_worker=_resources(job),
            label_selector=dict(workers.labels) or None,
            elastic_resize_monitor_interval_s=_RESIZE_CHECK_SECONDS,
        )
        progress = CheckpointProgress(job.store_url)
        policies: dict[str, Any] = {
            "failure_policy": FailuresInARow(
                job.training.max_failures, progress, partial(_find_work, driver)
            )
        }
        if workers.elastic:
            requester = f"{job.store_url}/{name}"
            policies["scaling_policy"] = SaveThenGrow(
                scaling, requester, driver, workers.grow, job.training.tensor_parallel
            )
        machines = MachineWatch(job, _resources(job), driver)
        hangs = HangWatch(limit_seconds, driver, machines.note_pace, job.store_url)
        super().__init__(
            *args,
            scaling_config=scaling,
            policies=policies,
            # What hangs is an error of the group when the machines are judged.
            callbacks=[GroupCleaner(), hangs, machines],
            before_backend=GpuCheck(machines),
            **kwargs,
        )


def _find_work(driver: Any) -> str | None:
    folder: str | None = ray.get(driver.let_go.remote())
    return folder


class CheckpointProgress:
    """Checks whether a job has committed a checkpoint since the last check."""

    def __init__(self, store_url: str) -> None:
        self._store_url = store_url
        self._last: tuple[str, int | None] | None = None

    def has_advanced(self, folder: str) -> bool:
        """Return whether the job's latest committed step is another than at the last check.

        The first failure of another job than at the last check follows an advance too. False when
        the store cannot be read: the workers report that themselves, as failed checkpoints.

        Args:
            folder: of the job that is at work.
        """
        try:
            latest = (folder, latest_step(open_run_store(self._store_url), folder))
        except (OSError, ValueError, PerennialError):
            return False
        advanced, self._last = latest != self._last, latest
        return advanced


class FailuresInARow(ResettableFailurePolicy):
    """Gives up after more than `max_failures` failures without a new checkpoint between them.

    A failure that follows a new checkpoint counts as the first one: a fleet of spot machines loses
    workers all the time and makes progress, while a bug meets the same step again. Without a job at
    work it gives up at once.
    """

    def __init__(
        self,
        max_failures: int,
        progress: CheckpointProgress,
        find_work: Callable[[], str | None],
    ) -> None:
        """Create the policy of a worker group.

        Args:
            max_failures: `training.max_failures`.
            progress: of the run's jobs.
            find_work: returns the folder of the job that is at work; without one the group gets
                no further job.
        """
        super().__init__(max_failures)
        self._progress = progress
        self._find_work = find_work

    def make_decision(self, training_failed_error: Exception) -> Any:
        """Return Ray's decision to start another worker group or to raise."""
        folder = self._find_work()
        if folder is None:
            return FailureDecision.RAISE
        if self._progress.has_advanced(folder):
            self.reset_failures()
        return super().make_decision(training_failed_error)


class SaveThenGrow(CurrentResourcesPolicy):
    """Starts as many workers as there is room for; a running group saves before it grows."""

    def __init__(
        self, scaling: ScalingConfig, name: str, driver: Any, grow: str, together: int
    ) -> None:
        """Create the policy of a job.

        Args:
            scaling: Ray Train's scaling configuration.
            name: under which room is requested.
            driver: handle of the driver's progress actor.
            grow: `training.workers.grow`.
            together: workers that only start together, on one node.
        """
        super().__init__(scaling, f"train-{name}", together)
        self._driver = driver
        self._growth = GrowthDecision(AT_ONCE if grow == "at-once" else PATIENCE)
        self._group: float | None = None
        self._grows = True  # the first group follows no loss
        self._decided_at = self._looked_at = time.time()
        self._answer: Any = None
        self._started_at = 0.0
        self._group_began_at = 0.0

    def _is_left_out(self, machine: str) -> bool:
        return is_left_out(machine)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Return Ray's decision to start a group, and note when it was made."""
        decision = super().make_decision_for_non_running_worker_group()
        self._decided_at = time.time()
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Return no resize, ever, and request a save from a group that should grow.

        Its workers then save and end, and the next start takes all the room there is, so no step is
        cut short. A group that would have to shrink does so by itself: a lost worker is a failure.
        """
        # Ray's decision is not taken, but its request for machines is repeated with it.
        super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if self._group != worker_group_state.start_time:
            self._note_group(worker_group_state.start_time)
        now = time.time()
        if now - self._looked_at >= _RESIZE_CHECK_SECONDS:
            self._look(worker_group_state.workers, now)
            self._looked_at = now
        return NoopDecision()

    def _note_group(self, start_time: float) -> None:
        if not self._grows:
            self._growth.note_loss()
        self._growth.note_start()
        self._group, self._grows, self._group_began_at = start_time, False, 0.0

    def _look(self, workers: Any, now: float) -> None:
        """End the group if it should grow; `workers` are Ray's handles of it."""
        # A group begins to train with each of its jobs; what it took to start is before the first.
        started_at = self._group_began_at or self._read_start()
        room = self.count_room()
        if self._grows or room is None or started_at < self._decided_at:
            return  # it ends already, or does not train yet
        self._group_began_at = started_at
        idle, restart_seconds = room - len(workers), started_at - self._decided_at
        self._growth.advance(now - max(started_at, self._looked_at), max(0, idle))
        if self._growth.seconds_left(len(workers), idle, restart_seconds) > 0:
            return
        self._grows = True
        self._driver.notice.remote(
            f"room for {room} workers instead of {len(workers)}: in the "
            f"{self._growth.quiet_seconds:.0f} s until one may be lost that is worth a restart of "
            f"{restart_seconds:.0f} s"
        )
        workers[0].execute_async(announce_end)

    def _read_start(self) -> float:
        """Return when a group last began to train, by the driver's last answer; 0 before it."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._started_at, self._answer = float(ray.get(self._answer)), None
        if self._answer is None:
            self._answer = self._driver.last_start.remote()
        return self._started_at


def _resources(job: Job) -> dict[str, float]:
    resources = {"CPU": job.training.cpus_per_worker}
    if job.training.gpus_per_worker:
        resources["GPU"] = job.training.gpus_per_worker
    return resources
