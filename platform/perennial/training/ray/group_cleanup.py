"""Removal of a worker group's placement group when the process that requested it is killed.

Ray Train leaves this to an actor of its own, which asks Ray's dashboard whether the controller
lives. Without a dashboard (on one machine there is none) it never learns, and the resources of a
killed trial of a search stay taken (ray-project/ray#54305). The actor here asks the cluster itself.
"""

from __future__ import annotations

from typing import Any

import ray

from perennial.training.ray.controller_guard import ControllerGuard
from perennial.training.ray.core_internals import HEAD_NODE_RESOURCE_NAME
from perennial.training.ray.internals import ControllerCallback, WorkerGroupCallback


class GroupCleaner(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Starts an actor on the head that removes the placement group of a dead controller."""

    def __init__(self) -> None:
        self._guard: Any = None

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start the actor; Ray calls this in the controller's process."""
        controller = ray.get_runtime_context().get_actor_id()
        guard = ray.remote(ControllerGuard).options(
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
