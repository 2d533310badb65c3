"""The room of a worker group whose controller is killed comes back, and no actor stays for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray.util import placement_group, placement_group_table

from perennial.training.ray.group_cleanup import GroupCleaner

pytestmark = pytest.mark.usefixtures("ray_local")


class Controller:
    """Does with the callback what Ray Train's controller does."""

    def __init__(self) -> None:
        self._group = placement_group([{"CPU": 0.1}])
        ray.get(self._group.ready())
        self._cleaner = GroupCleaner()
        self._cleaner.after_controller_start(None)
        self._cleaner.after_worker_group_start(self)

    def get_worker_group_state(self) -> Any:
        return self

    @property
    def placement_group_handle(self) -> Any:
        return self

    @property
    def placement_group(self) -> Any:
        return self._group

    def group_id(self) -> str:
        return str(self._group.id.hex())

    def end(self) -> None:
        self._cleaner.before_controller_abort()


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)  # polling a condition


def _watches() -> list[str]:
    from ray._private.state import actors

    return [
        actor["State"]
        for actor in actors().values()
        if actor["ActorClassName"] == "ControllerGuard" and actor["State"] != "DEAD"
    ]


def _state(group_id: str) -> str:
    return str(placement_group_table()[group_id]["state"])


def test_a_killed_controller_s_group_is_removed_and_its_watch_goes() -> None:
    controller = ray.remote(Controller).options(num_cpus=0).remote()
    group = ray.get(controller.group_id.remote())
    assert (_state(group), len(_watches())) == ("CREATED", 1)
    ray.kill(controller)
    _until(lambda: _state(group) == "REMOVED")
    _until(lambda: not _watches())


def test_a_controller_that_ends_takes_its_watch_with_it_and_removes_the_group_itself() -> None:
    controller = ray.remote(Controller).options(num_cpus=0).remote()
    group = ray.get(controller.group_id.remote())
    ray.get(controller.end.remote())
    _until(lambda: not _watches())
    assert _state(group) == "CREATED"
    ray.util.remove_placement_group(_group(group))
    _until(lambda: _state(group) == "REMOVED")


def _group(group_id: str) -> Any:
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    return PlacementGroup(PlacementGroupID.from_hex(group_id))
