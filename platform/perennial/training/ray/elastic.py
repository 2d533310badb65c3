"""Policies that decide when a worker group starts again, and with how many workers.

Ray Train decides both from its own view of the cluster. Three changes make its decisions fit a run
whose state is in the store: it looks at the cluster as it is now, a group saves before it grows,
and failures are counted since the last committed checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.train import ScalingConfig

from perennial.errors import PerennialError
from perennial.store import open_store
from perennial.training.checkpoint.manifest import latest_step
from perennial.training.ray.environment import set_ray_train_defaults
from perennial.training.ray.group_cleanup import GroupCleaner
from perennial.training.ray.hangs import HangWatch
from perennial.training.ray.internals import (
    CurrentResourcesPolicy,
    NoopDecision,
    PolicyTrainer,
    ResettableFailurePolicy,
    ResizeDecision,
    ScalingDecision,
)
from perennial.training.ray.preemption import announce_end

if TYPE_CHECKING:
    from perennial.training.job import Job

_RESIZE_CHECK_SECONDS = 5.0
"""Interval at which a healthy worker group checks for more room: one call to an actor."""


class ElasticTrainer(PolicyTrainer):
    """Ray Train's trainer with the policies of this module."""

    def __init__(self, job: Job, driver: Any, *args: Any, **kwargs: Any) -> None:
        """Create the trainer of a job.

        Args:
            job: what to train.
            driver: handle of the driver's progress actor.
            args: positional arguments of Ray's `TorchTrainer`.
            kwargs: keyword arguments of it.
        """
        set_ray_train_defaults()
        workers = job.training.workers
        scaling = ScalingConfig(
            num_workers=(workers.min, workers.max) if workers.elastic else workers.max,
            use_gpu=job.training.gpus_per_worker > 0,
            resources_per_worker=_resources(job),
            elastic_resize_monitor_interval_s=_RESIZE_CHECK_SECONDS,
        )
        progress = CheckpointProgress(job.store_url, job.folder)
        policies: dict[str, Any] = {
            "failure_policy": FailuresInARow(job.training.max_failures, progress)
        }
        if workers.elastic:
            policies["scaling_policy"] = SaveThenGrow(scaling, f"{job.store_url}/{job.folder}")
        callbacks = [GroupCleaner(), HangWatch(60 * job.training.hang_minutes, driver)]
        super().__init__(
            *args, scaling_config=scaling, policies=policies, callbacks=callbacks, **kwargs
        )


class CheckpointProgress:
    """Checks whether a job has committed a checkpoint since the last check."""

    def __init__(self, store_url: str, folder: str) -> None:
        self._store_url = store_url
        self._folder = folder
        self._last: int | None = None

    def has_advanced(self) -> bool:
        """Return whether the latest committed step is another than at the last check.

        False when the store cannot be read: the workers report that themselves, as failed
        checkpoints.
        """
        try:
            latest = latest_step(open_store(self._store_url), self._folder)
        except (OSError, ValueError, PerennialError):
            return False
        advanced, self._last = latest != self._last, latest
        return advanced


class FailuresInARow(ResettableFailurePolicy):
    """Gives up after more than `max_failures` failures without a new checkpoint between them.

    A failure that follows a new checkpoint counts as the first one: a fleet of spot machines loses
    workers all the time and makes progress, while a bug meets the same step again.
    """

    def __init__(self, max_failures: int, progress: CheckpointProgress) -> None:
        super().__init__(max_failures)
        self._progress = progress
        progress.has_advanced()  # what was committed before this attempt is no progress of it

    def make_decision(self, training_failed_error: Exception) -> Any:
        """Return Ray's decision to start another worker group or to raise."""
        if self._progress.has_advanced():
            self.reset_failures()
        return super().make_decision(training_failed_error)


class SaveThenGrow(CurrentResourcesPolicy):
    """Starts as many workers as there is room for; a running group saves before it grows."""

    def __init__(self, scaling: ScalingConfig, name: str) -> None:
        super().__init__(scaling, f"train-{name}")
        self._ending_group: float | None = None

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Return no resize, ever, and request a save from a group that should grow.

        Its workers then save and end, and the next start takes all the room there is, so no step is
        cut short. A group that would have to shrink does so by itself: a lost worker is a failure.
        """
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        grow = (
            isinstance(decision, ResizeDecision)
            and decision.num_workers > worker_group_state.num_workers
        )
        if grow and self._ending_group != worker_group_state.start_time:
            self._ending_group = worker_group_state.start_time
            worker_group_state.workers[0].execute_async(announce_end)
        return NoopDecision()


def _resources(job: Job) -> dict[str, float]:
    resources = {"CPU": job.training.cpus_per_worker}
    if job.training.gpus_per_worker:
        resources["GPU"] = job.training.gpus_per_worker
    return resources
