"""The room of a worker group is given back when the process that asked for it is killed.

Ray Train leaves this to an actor of its own, which asks Ray's dashboard whether the controller
lives. Without a dashboard (on one machine there is none) it never learns, and the room of a killed
trial of a search stays taken (ray-project/ray#54305). This one asks the cluster itself, and goes.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
import tenacity
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

_LOOK_SECONDS = 1.0


class GroupCleaner(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Has an actor on the head watch over the controller and remove what it leaves behind."""

    def __init__(self) -> None:
        self._watch: Any = None

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called in the controller's process."""
        controller = ray.get_runtime_context().get_actor_id()
        watch = ray.remote(_Watch).options(
            num_cpus=0,
            resources={HEAD_NODE_RESOURCE_NAME: 0.001},
            lifetime="detached",
            scheduling_strategy="DEFAULT",  # a trial's placement group has no room for it
        )
        self._watch = watch.remote(controller)

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Each group takes the place of the one before, which Ray Train has removed."""
        state = worker_group.get_worker_group_state()
        ray.get(self._watch.hold.remote(state.placement_group_handle.placement_group))

    async def before_controller_shutdown(self) -> None:
        """From here on Ray Train removes the group by itself."""
        self.before_controller_abort()

    def before_controller_abort(self) -> None:
        """The same."""
        ray.kill(self._watch)


class _Watch:
    """An actor that outlives the controller, by as long as it takes to notice that."""

    def __init__(self, controller: str) -> None:
        self._controller = controller
        self._group: PlacementGroup | None = None
        threading.Thread(target=self._outlive, daemon=True).start()

    def hold(self, group: PlacementGroup) -> None:
        self._group = group

    def _outlive(self) -> None:
        while _lives(self._controller):
            time.sleep(_LOOK_SECONDS)
        if self._group is not None:
            remove_placement_group(self._group)
        ray.kill(ray.get_runtime_context().current_actor)


@tenacity.retry(wait=tenacity.wait_fixed(_LOOK_SECONDS))
def _lives(actor_id: str) -> bool:
    """Asked again as long as nobody answers."""
    told = ray._private.state.actors(actor_id)
    return bool(told) and told["State"] != "DEAD"
