"""The actor that removes a dead controller's placement group: a module that does not import torch.

Its process starts while a worker group does, and imports this module first.
"""

from __future__ import annotations

import threading
import time

import ray
import tenacity
from ray.util.placement_group import PlacementGroup, remove_placement_group

from perennial.training.ray.core_internals import is_actor_alive

_CHECK_SECONDS = 1.0


class ControllerGuard:
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
