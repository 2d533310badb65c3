"""Removal of a worker group's placement group when the process that requested it is killed.

Ray Train leaves this to an actor of its own, which asks Ray's dashboard whether the controller
lives. Without a dashboard (on one machine there is none) it never learns, and the resources of a
killed trial of a search stay taken (ray-project/ray#54305). The actor here asks the cluster itself.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
import tenacity
from ray.util.placement_group import PlacementGroup, remove_placement_group

from perennial.training.ray.internals import (
    HEAD_NODE_RESOURCE_NAME,
    ControllerCallback,
    WorkerGroupCallback,
    is_actor_alive,
)

_CHECK_SECONDS = 1.0


class GroupCleaner(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Starts an actor on the head that removes the placement group of a dead controller."""

    def __init__(self) -> None:
        self._guard: Any = None

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start the actor; Ray calls this in the controller's process."""
        controller = ray.get_runtime_context().get_actor_id()
        guard = ray.remote(_ControllerGuard).options(
            num_cpus=0,
            resources={HEAD_NODE_RESOURCE_NAME: 0.001},
            lifetime="detached",
            scheduling_strategy="DEFAULT",  # a trial's placement group has no room for it
        )
        self._guard = guard.remote(controller)

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Guard the new group instead of the one before, which Ray Train has removed."""
        state = worker_group.get_worker_group_state()
        ray.get(self._guard.hold.remote(state.placement_group_handle.placement_group))

    async def before_controller_shutdown(self) -> None:
        """End the actor: from here on Ray Train removes the group by itself."""
        self.before_controller_abort()

    def before_controller_abort(self) -> None:
        """End the actor: Ray Train removes the group of a controller that it aborts."""
        ray.kill(self._guard)


class _ControllerGuard:
    """An actor that outlives the controller by as long as it takes to notice its death."""

    def __init__(self, controller: str) -> None:
        self._controller = controller
        self._group: PlacementGroup | None = None
        threading.Thread(target=self._wait_and_remove, daemon=True).start()

    def hold(self, group: PlacementGroup) -> None:
        """Remember the placement group to remove."""
        self._group = group

    def _wait_and_remove(self) -> None:
        while _is_alive(self._controller):
            time.sleep(_CHECK_SECONDS)
        if self._group is not None:
            remove_placement_group(self._group)
        ray.kill(ray.get_runtime_context().current_actor)


@tenacity.retry(wait=tenacity.wait_fixed(_CHECK_SECONDS))
def _is_alive(actor_id: str) -> bool:
    # Retried without end: a cluster that does not answer now says nothing about the controller.
    return is_actor_alive(actor_id)
