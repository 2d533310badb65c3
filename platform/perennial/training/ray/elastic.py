"""When a worker group is started again, and with how many workers.

Ray Train decides both, from what it knows of the cluster. Three things make its decisions fit a
run whose truth is in the store: it looks at the cluster as it is now, it has a group save before it
grows, and it counts failures against the checkpoints that were committed since.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    AUTOSCALING_REQUESTS_GET_TIMEOUT_S,
    TrainAutoscalingCoordinatorClient,
)

from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.ray import preemption as notice
from perennial.training.ray.group_cleanup import GroupCleaner

if TYPE_CHECKING:
    from perennial.training.job import Job

_LOOK_EVERY_SECONDS = 5.0
"""How often a healthy worker group looks for room for more workers: one call to an actor."""
_NEW_LOOK_SECONDS = 1.0
"""How often a worker group that is being started looks again."""
_RAY_TRAIN = {
    # A dead worker is noticed at the next poll: 1 second earlier on average than by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # How long a start waits for nodes of which one may be dead, before it looks again at what
    # there is. Starting workers is not part of it, and what was asked of an autoscaler stays asked.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's trainer with the policies of this module; `RAY_TRAIN_*` variables overrule."""

    def __init__(self, job: Job, *arguments: Any, **more: Any) -> None:
        for name, value in _RAY_TRAIN.items():
            os.environ.setdefault(name, value)
        workers = job.training.workers
        scaling = ScalingConfig(
            num_workers=(workers.min, workers.max) if workers.elastic else workers.max,
            use_gpu=job.training.gpus_per_worker > 0,
            resources_per_worker=_resources(job),
            elastic_resize_monitor_interval_s=_LOOK_EVERY_SECONDS,
        )
        super().__init__(*arguments, scaling_config=scaling, **more)
        progress = Progress(job.store_url, job.folder)
        self._policies: dict[str, Any] = {
            "failure_policy": FailuresInARow(job.training.max_failures, progress)
        }
        if workers.elastic:
            self._policies["scaling_policy"] = SaveThenGrow(
                scaling, f"{job.store_url}/{job.folder}"
            )

    def _create_default_callbacks(self) -> list[Any]:
        theirs = super()._create_default_callbacks()
        kept = [each for each in theirs if not isinstance(each, PlacementGroupCleanerCallback)]
        return [*kept, GroupCleaner()]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        # The only place where Ray 2.60 lets a trainer choose its policies.
        return super()._initialize_and_run_controller(**parts | self._policies)


class Progress:
    """Whether a job's checkpoints have got on since the last look."""

    def __init__(self, store_url: str, folder: str) -> None:
        self._store_url = store_url
        self._folder = folder
        self._seen: int | None = None

    def made(self) -> bool:
        """Whether there is a checkpoint that was not there at the last look."""
        before = self._seen
        # A store that cannot be read now tells nothing; the workers have their own word on that.
        with suppress(Exception):
            self._seen = checkpoint.latest_step(open_store(self._store_url), self._folder)
        return self._seen != before


class FailuresInARow(DefaultFailurePolicy):  # type: ignore[misc]
    """Gives up after more than `max_failures` failures without a new checkpoint between them.

    Each failure that follows a new checkpoint is the first one: a fleet of spot machines loses
    workers for ever and gets on, while a bug meets the same step again.
    """

    def __init__(self, max_failures: int, progress: Progress) -> None:
        super().__init__(FailureConfig(max_failures=max_failures))
        self._progress = progress
        progress.made()

    def make_decision(self, training_failed_error: Exception) -> Any:
        """Whether to start another worker group."""
        if self._progress.made():
            self._worker_group_failures = 0
        return super().make_decision(training_failed_error)


class SaveThenGrow(ElasticScalingPolicy):  # type: ignore[misc]
    """Starts as many workers as there is room for; for more it has the running ones save first."""

    def __init__(self, scaling: ScalingConfig, name: str) -> None:
        super().__init__(scaling)
        self._name = name
        self._noticed: float | None = None
        self._looked_at = -math.inf
        self._room: Any = None

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for room in the job's name.

        Ray would ask in the name of this attempt, and keep what a killed driver asked for
        reserved for three minutes, from the driver that follows it.
        """
        self._requester_id = f"train-{self._name}"
        self._coordinator_client = TrainAutoscalingCoordinatorClient(self._requester_id)
        self._send_resource_request()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Never cut a step short: workers that are noticed save, end, and start anew as more.

        A group that would have to shrink does so by itself: a worker that is lost fails.
        """
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        grow = (
            isinstance(decision, ResizeDecision)
            and decision.num_workers > worker_group_state.num_workers
        )
        if grow and self._noticed != worker_group_state.start_time:
            self._noticed = worker_group_state.start_time
            worker_group_state.workers[0].execute_async(notice.give)
        return NoopDecision()

    def _get_reserved_resources(self) -> Any:
        """What the cluster has for this job now; Ray's own view is up to 20 seconds old."""
        if time.monotonic() - self._looked_at >= _NEW_LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._room = None
            with suppress(ray.exceptions.RayError):
                self._room = ray.get(
                    self._autoscaling_coordinator.get_reserved_resources.remote(
                        self._requester_id, recompute=True
                    ),
                    timeout=AUTOSCALING_REQUESTS_GET_TIMEOUT_S,
                )
        return self._room


def _resources(job: Job) -> dict[str, float]:
    resources = {"CPU": job.training.cpus_per_worker}
    if job.training.gpus_per_worker:
        resources["GPU"] = job.training.gpus_per_worker
    return resources
