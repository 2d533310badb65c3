"""Adapters around names that Ray Train keeps private.

No other module but `core_internals` uses a private name of Ray. Written for Ray 2.60: when a
release of Ray moves or renames any of them, these two files alone change.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.torch.config import _TorchBackend as TorchBackend
from ray.train.v2._internal.callbacks.backend_setup import BackendSetupCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.failure_handling import (
    DefaultFailurePolicy,
    FailureDecision,
)
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    AUTOSCALING_REQUESTS_GET_TIMEOUT_S,
    TrainAutoscalingCoordinatorClient,
)
from ray.train.v2.api.exceptions import TrainingFailedError

__all__ = [
    "ControllerCallback",
    "CurrentResourcesPolicy",
    "FailureDecision",
    "NoopDecision",
    "PolicyTrainer",
    "ResettableFailurePolicy",
    "ScalingDecision",
    "TorchBackend",
    "TrainingFailedError",
    "WorkerGroupCallback",
    "WorkerGroupStartupFailedError",
    "failures_of_workers",
    "is_death",
    "is_node_drained",
    "is_preempted",
]

_VIEW_SECONDS = 1.0
"""Age at which a view of the cluster's free resources is read again."""


class PolicyTrainer(TorchTrainer):  # type: ignore[misc]
    """A `TorchTrainer` with policies and callbacks chosen by the caller."""

    def __init__(
        self,
        *args: Any,
        policies: dict[str, Any],
        callbacks: Sequence[Any],
        before_backend: Any,
        **kwargs: Any,
    ) -> None:
        """Create the trainer.

        Args:
            args: positional arguments of `TorchTrainer`.
            policies: `failure_policy` and `scaling_policy` by name; an absent one is Ray's own.
            callbacks: of the controller; one takes the place of Ray's own clean-up of placement
                groups.
            before_backend: a callback that comes before the process group is made.
            kwargs: keyword arguments of `TorchTrainer`.
        """
        super().__init__(*args, **kwargs)
        self._policies = policies
        self._more_callbacks = callbacks
        self._before_backend = before_backend

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        kept = [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]
        (backend,) = (i for i, c in enumerate(kept) if isinstance(c, BackendSetupCallback))
        return [*kept[:backend], self._before_backend, *kept[backend:], *self._more_callbacks]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        # The only place where Ray 2.60 lets a trainer choose its policies.
        return super()._initialize_and_run_controller(**parts | self._policies)


class ResettableFailurePolicy(DefaultFailurePolicy):  # type: ignore[misc]
    """Ray's failure policy, whose count of worker-group failures can start again."""

    def __init__(self, max_failures: int) -> None:
        super().__init__(FailureConfig(max_failures=max_failures))

    def reset_failures(self) -> None:
        """Count the next failure as the first one."""
        self._worker_group_failures = 0


class CurrentResourcesPolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray's elastic policy, deciding by what the cluster has free now, in a fixed requester's name.

    Args:
        scaling: Ray Train's scaling configuration.
        requester: name under which resources are requested of Ray's autoscaling coordinator.
        together: workers that only start together, on one node.
    """

    def __init__(self, scaling: ScalingConfig, requester: str, together: int = 1) -> None:
        super().__init__(scaling)
        self._together = together
        self._requester_id = requester
        self._read_at: float | None = None
        self._resources: Any = None

    def after_controller_start(self, train_run_context: Any) -> None:
        """Request resources in the requester's name.

        Ray would request them in the name of this attempt, and keep what a killed driver requested
        reserved for three minutes, so that the driver that follows it could not have it.
        """
        self._coordinator_client = TrainAutoscalingCoordinatorClient(self._requester_id)
        self._send_resource_request()

    def _get_reserved_resources(self) -> Any:
        # Overridden because Ray's own view of the cluster is up to 20 seconds old.
        if self._read_at is None or time.monotonic() - self._read_at >= _VIEW_SECONDS:
            self._read_at = time.monotonic()
            self._resources = None
            # A coordinator that does not answer is asked again at the next decision.
            with suppress(ray.exceptions.RayError):
                self._resources = ray.get(
                    self._autoscaling_coordinator.get_reserved_resources.remote(
                        self._requester_id, recompute=True
                    ),
                    timeout=AUTOSCALING_REQUESTS_GET_TIMEOUT_S,
                )
        return self._resources

    def _is_left_out(self, machine: str) -> bool:
        """Return whether no worker is placed on a machine, by Ray's id of its node."""
        return False

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        # Overridden because Ray would start a part of a group that only works together.
        of_nodes = (
            super(CurrentResourcesPolicy, self)._count_possible_workers({node: resources})
            for node, resources in reserved_resources.items()
            if not self._is_left_out(node)
        )
        whole = sum(number - number % self._together for number in of_nodes)
        return int(min(whole, self.scaling_config.max_workers))

    def count_room(self) -> int | None:
        """Return how many workers there is room for, those that run included; None if unknown."""
        resources = self._get_reserved_resources()
        return None if resources is None else self._count_possible_workers(resources)


def is_death(error: BaseException) -> bool:
    """Return whether Ray says with an error that a worker's process ended, or does not answer."""
    kinds = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
    return isinstance(error, (*kinds, ray.exceptions.RayActorError))


def is_preempted(error: BaseException) -> bool:
    """Return whether a worker ended because its machine was taken away with a notice."""
    cause = getattr(error, "health_check_failure", error)
    return isinstance(cause, ray.exceptions.RayActorError) and cause.preempted


def is_node_drained() -> bool:
    """Return whether Ray has announced that this worker's node ends."""
    # Ray's public `get_preemption_info` waits for every worker in an actor, several milliseconds
    # a step; what it would collect is already known in this process.
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def failures_of_workers(failed: BaseException) -> list[tuple[BaseException, str]]:
    """Return what ended a worker group, without Ray's wrappers, each with its printed traceback."""
    failures = [*getattr(failed, "worker_failures", {}).values()]
    failures += filter(None, [getattr(failed, "controller_failure", None)])
    return [(getattr(failure, "_base_exc", failure), _printed(failure)) for failure in failures]


def _printed(failure: BaseException) -> str:
    text = str(failure)
    return text if 'File "' in text else f"{type(failure).__name__}: {text}"
