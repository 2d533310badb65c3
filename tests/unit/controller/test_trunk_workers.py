"""Room for tasks beside the trunk's workers, which wait for the next stage."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from perennial.controller.ray_cluster import TrunkWorkers


class _Kept:
    """The launcher's workers, played: they wait from their first job until they are let go."""

    are_waiting = False

    def __init__(self, name: str) -> None:
        self.name = name

    def run_job(self, job: Any, on_progress: Any, keep_seconds: float, meanwhile: Any) -> str:
        self.are_waiting = keep_seconds > 0
        return f"{self.name} for {keep_seconds:.0f} s"

    def let_go(self) -> None:
        self.are_waiting = False


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Any:
    launcher = SimpleNamespace(KeptWorkers=_Kept)
    monkeypatch.setitem(sys.modules, "perennial.training.launcher", launcher)
    return SimpleNamespace(training=SimpleNamespace(idle_minutes=5.0))


def _cluster(
    monkeypatch: pytest.MonkeyPatch, free: dict[str, float], whole: dict[str, float]
) -> None:
    ray = SimpleNamespace(available_resources=lambda: free, cluster_resources=lambda: whole)
    monkeypatch.setitem(sys.modules, "ray", ray)


@pytest.mark.parametrize(
    ("free", "whole", "gpus", "share", "stay"),
    [
        pytest.param({"CPU": 2.2}, {"CPU": 4}, 1, 1.0, True, id="a whole CPU is free"),
        pytest.param({"CPU": 0.2}, {"CPU": 2}, 1, 0.1, True, id="what the readers reserve"),
        pytest.param({}, {"CPU": 2}, 0, 0.1, True, id="not yet known to be free"),
        pytest.param({"CPU": 9}, {"CPU": 9, "GPU": 2}, 1, 1.0, False, id="no GPU is free"),
        pytest.param({"CPU": 9, "GPU": 1}, {"CPU": 9, "GPU": 2}, 1, 1.0, True, id="a GPU is"),
        pytest.param({"CPU": 0.2}, {"CPU": 9, "GPU": 2}, 0, 0.1, True, id="no GPU is needed"),
    ],
)
def test_a_task_has_room_beside_workers_that_wait(
    monkeypatch: pytest.MonkeyPatch,
    job: Any,
    free: dict[str, float],
    whole: dict[str, float],
    gpus: int,
    share: float,
    stay: bool,
) -> None:
    workers = TrunkWorkers()
    assert workers.make_room(gpus) == 1.0, "nobody waits, and Ray is not asked"
    assert workers.train(job, lambda _: None, lambda: True) == "trunk for 300 s"
    _cluster(monkeypatch, free, whole)
    assert workers.make_room(gpus) == share
    assert workers._kept is not None
    assert workers._kept.are_waiting is stay
    workers.let_go()
    assert workers.make_room(gpus) == 1.0
