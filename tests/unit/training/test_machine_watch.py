"""The watch over machines, with a worker group and a cluster that are played."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from perennial.config.training import TrainingSpec
from perennial.errors import Preempted
from perennial.store import open_store
from perennial.training.machines import read_machines
from perennial.training.preflight import RankSpeed, measure
from perennial.training.ray.hangs import HungWorker
from perennial.training.ray.internals import WorkerGroupStartupFailedError
from perennial.training.ray.machine_watch import (
    NODE_ID_LABEL,
    MachineWatch,
    NoGpuSeen,
    failure_of,
    is_left_out,
)
from tests.support.played_driver import PlayedDriver

NOW = 1e9
NODES = ("aa", "bb", "cc")


class PlayedGroup:
    """Workers on nodes; `answers` are what its workers return, by function."""

    def __init__(self, places: list[str], answers: dict[Any, list[Any]] | None = None) -> None:
        self._places = places
        self._answers = answers or {}
        self.is_ended = False

    def get_workers(self) -> list[Any]:
        return [
            SimpleNamespace(metadata=SimpleNamespace(node_id=place, node_ip=f"ip-{place}"))
            for place in self._places
        ]

    def get_resources_per_worker(self) -> dict[str, float]:
        return {"CPU": 1.0, "GPU": 1.0}

    def execute(self, function: Callable[..., Any], *_arguments: Any) -> list[Any]:
        return self._answers[function]

    def abort(self) -> None:
        self.is_ended = True


def status(**errors: BaseException) -> Any:
    return SimpleNamespace(errors={int(rank[1:]): error for rank, error in errors.items()})


def watch(tmp_path: Path, driver: PlayedDriver, **training: Any) -> MachineWatch:
    values = {"workers": {"min": 1, "max": 2}, "global_batch": 2, "micro_batch": 1} | training
    job: Any = SimpleNamespace(
        store_url=str(tmp_path), training=TrainingSpec.model_validate(values)
    )
    nodes = [
        {"NodeID": name, "Alive": True, "Labels": {}, "Resources": {"CPU": 1.0}} for name in NODES
    ]
    return MachineWatch(job, {"CPU": 1.0}, driver, lambda: NOW, lambda: nodes)


def selector(watch: MachineWatch) -> dict[str, str] | None:
    return watch.on_controller_start_worker_group(scaling_config=None, num_workers=2)


def fail(watch: MachineWatch, rank: int) -> None:
    """A group on aa and bb whose worker of a rank is killed."""
    watch.after_worker_group_start(PlayedGroup(["aa", "bb"]))
    error = HungWorker("it was killed")
    watch.after_worker_group_poll_status(status(**{f"r{rank}": error}))
    watch.after_worker_group_poll_status(status(**{f"r{rank}": error}))  # seen again


def test_a_machine_that_fails_is_left_out_and_named(tmp_path: Path) -> None:
    driver = PlayedDriver()
    watching = watch(tmp_path, driver, max_machine_failures=2)
    fail(watching, 1)
    assert selector(watching) is None
    assert not driver.calls
    fail(watching, 1)
    assert selector(watching) == {NODE_ID_LABEL: "!in(bb)"}
    assert is_left_out("bb")
    assert not is_left_out("aa")
    ((_, (line,)),) = driver.calls
    assert line == "ip-bb is left out for a day: workers failed on it 2 times within a day"
    # The next command knows it.
    assert read_machines(open_store(tmp_path), NOW)["bb"].left_out
    assert selector(watch(tmp_path, driver)) == {NODE_ID_LABEL: "!in(bb)"}


def test_watches_of_two_processes_keep_each_others_notes(tmp_path: Path) -> None:
    driver = PlayedDriver()
    first, second = (watch(tmp_path, driver, max_machine_failures=2) for _ in range(2))
    for watching in (first, second):
        assert selector(watching) is None  # both have read the empty store
    fail(first, 1)
    fail(second, 0)
    fail(first, 1)
    second.note_pace({0: 1.0, 1: 2.0})
    known = read_machines(open_store(tmp_path), NOW)
    assert (known["aa"].failures, known["bb"].failures) == ([NOW], [NOW, NOW])
    assert known["bb"].left_out
    assert selector(second) == {NODE_ID_LABEL: "!in(bb)"}


def test_a_group_that_needs_every_machine_keeps_it(tmp_path: Path) -> None:
    watching = watch(tmp_path, PlayedDriver(), workers=3, global_batch=3, max_machine_failures=1)
    fail(watching, 0)
    assert selector(watching) is None


def test_labels_of_the_run_file_stay_beside_the_exclusion(tmp_path: Path) -> None:
    workers = {"min": 1, "max": 2, "labels": {"zone": "x"}}
    watching = watch(tmp_path, PlayedDriver(), workers=workers, max_machine_failures=1)
    for node in watching._nodes():
        node["Labels"]["zone"] = "x"
    fail(watching, 0)
    assert selector(watching) == {"zone": "x", NODE_ID_LABEL: "!in(aa)"}


def test_a_slow_machine_is_left_out_before_it_trains(tmp_path: Path) -> None:
    driver = PlayedDriver()
    watching = watch(tmp_path, driver, least_speed=0.7)
    measured = [RankSpeed(9e9, None, 5e9), RankSpeed(3e9, None, 5e9)]
    group = PlayedGroup(["aa", "bb"], {measure: measured})
    with pytest.raises(WorkerGroupStartupFailedError):
        watching.after_worker_group_start(group)
    assert group.is_ended, "or it would keep its room"
    assert selector(watching) == {NODE_ID_LABEL: "!in(bb)"}
    assert "ip-bb is left out for a day: matrix products at 33%" in driver.calls[0][1][0]
    # Machines that were measured are not measured again.
    watching.after_worker_group_start(PlayedGroup(["aa", "aa"]))


def test_a_slow_machine_that_is_needed_trains(tmp_path: Path) -> None:
    driver = PlayedDriver()
    watching = watch(tmp_path, driver, workers=3, global_batch=3, least_speed=0.7)
    measured = [RankSpeed(9e9, None, 5e9), RankSpeed(9e9, None, 5e9), RankSpeed(3e9, None, 5e9)]
    watching.after_worker_group_start(PlayedGroup([*NODES], {measure: measured}))
    assert "ip-cc is still needed: matrix products at 33%" in driver.calls[0][1][0]
    assert selector(watching) is None


def test_a_gpu_that_is_not_seen_leaves_its_machine_out(tmp_path: Path) -> None:
    import torch

    driver = PlayedDriver()
    watching = watch(tmp_path, driver)
    seen = torch.cuda.is_available
    watching.check_gpus(PlayedGroup(["aa", "bb"], {seen: [True, True]}))
    with pytest.raises(WorkerGroupStartupFailedError):
        watching.check_gpus(PlayedGroup(["aa", "bb"], {seen: [True, False]}))
    assert "ip-bb is left out for a day: a GPU was asked for" in driver.calls[0][1][0]
    with pytest.raises(NoGpuSeen, match=r"^ip-aa, ip-cc: a GPU was asked for"):
        watching.check_gpus(PlayedGroup(["aa", "cc"], {seen: [False, False]}))


def test_a_worker_that_lags_is_named_once(tmp_path: Path) -> None:
    driver = PlayedDriver()
    watching = watch(tmp_path, driver)
    watching.after_worker_group_start(PlayedGroup(["aa", "bb"]))
    for _ in range(2):
        watching.note_pace({0: 1.0, 1: 2.0})
    ((_, (line,)),) = driver.calls
    assert line.startswith("worker 1 on ip-bb computes 2 s a step, 2.0 times as long")
    assert read_machines(open_store(tmp_path), NOW)["bb"].pace == {1: 2.0}
    watching.note_pace({0: 1.0, 1: 1.0})
    watching.note_pace({0: 1.0, 1: 2.0})
    assert len(driver.calls) == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (HungWorker("x"), "died"),
        (ray.exceptions.ActorDiedError(), "died"),
        (Preempted("x"), None),
        (ConnectionError("x"), "lost-connection"),
        (RuntimeError("Connection closed by peer [127.0.0.1]:1"), "lost-connection"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "raised"),
        (OSError(28, "No space left on device"), "raised"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_a_worker_failed(error: BaseException, kind: str | None) -> None:
    assert failure_of(error) == kind
