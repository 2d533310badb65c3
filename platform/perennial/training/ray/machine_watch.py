"""Keeping workers off machines that fail, see no GPU, or are slow, and naming those that lag.

Runs in Ray Train's controller. `training/machines.py` has the rules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray
import torch

from perennial.errors import PerennialError
from perennial.store import open_store
from perennial.training.machines import (
    Failure,
    MachineRecord,
    Machines,
    blame,
    read_machines,
    rooms_of,
    slow_machines,
    stragglers,
    write_machines,
)
from perennial.training.preflight import combine, measure
from perennial.training.ray.hangs import HungWorker
from perennial.training.ray.internals import (
    ControllerCallback,
    WorkerGroupCallback,
    WorkerGroupStartupFailedError,
    is_death,
    is_preempted,
)

if TYPE_CHECKING:
    from perennial.training.job import Job

NODE_ID_LABEL = "ray.io/node-id"
"""Ray's own label of every node."""
_CONNECTION_WORDS = ("connection", "gloo", "broken pipe", "nccl", "timed out", "timeout")
"""In messages of workers that lost the others."""
_LEAST_SPEED_OF_GPUS = 0.7
_STORE_EVERY_SECONDS = 600.0

# Of the controller's process: Ray gives its callbacks and its scaling policy copies of what the
# trainer holds, and both have to know which machines are left out.
_left_out: set[str] = set()


def is_left_out(machine: str) -> bool:
    """Return whether no worker is placed on a machine, by Ray's id of its node."""
    return machine in _left_out


class NoGpuSeen(RuntimeError):
    """Workers were given GPUs, and torch sees none on any machine."""


class MachineWatch(WorkerGroupCallback, ControllerCallback):  # type: ignore[misc]
    """Notes what machines do, and keeps workers off those that are left out."""

    def __init__(
        self,
        job: Job,
        needs: Mapping[str, float],
        driver: Any,
        clock: Callable[[], float] = time.time,
        nodes: Callable[[], list[dict[str, Any]]] = ray.nodes,
    ) -> None:
        """Watch the worker groups of a job.

        Args:
            job: what is trained.
            needs: resources that a worker takes.
            driver: handle of the driver's progress actor.
            clock: of seconds since 1970.
            nodes: returns the nodes of the cluster as Ray describes them.
        """
        training = job.training
        self._store_url = job.store_url
        self._workers = training.workers
        self._needs = needs
        usual = _LEAST_SPEED_OF_GPUS if training.gpus_per_worker else 0.0
        self._least_speed = usual if training.least_speed is None else training.least_speed
        self._most_failures = training.max_machine_failures
        self._driver = driver
        self._clock = clock
        self._nodes = nodes
        self._machines: Machines | None = None
        self._places: list[str] = []
        self._failed = False
        self._lagging: set[int] = set()
        self._stored_at = 0.0

    def on_controller_start_worker_group(
        self, *, scaling_config: Any, num_workers: int
    ) -> dict[str, str] | None:
        """Return the labels of machines that workers may be placed on; None for the usual ones."""
        out = self._choose()
        if not out:
            return None
        return {**self._workers.labels, NODE_ID_LABEL: f"!in({', '.join(sorted(out))})"}

    def check_gpus(self, worker_group: Any) -> None:
        """Leave out machines on which a worker does not see the GPU that Ray gave it.

        Raises:
            NoGpuSeen: no worker sees any; another group would not either.
        """
        if not worker_group.get_resources_per_worker().get("GPU"):
            return
        seen = worker_group.execute(torch.cuda.is_available)
        blind = {p for p, sees in zip(self._meet(worker_group), seen, strict=True) if not sees}
        if not blind:
            return
        why = (
            "a GPU was asked for and given, and torch sees none; look at the driver: its folder "
            "must be in LD_LIBRARY_PATH, and torch a build for CUDA"
        )
        if not any(seen):
            addresses = sorted(self._known().records[machine].address for machine in blind)
            worker_group.abort()
            raise NoGpuSeen(f"{', '.join(addresses)}: {why}")
        self._leave_out(dict.fromkeys(blind, why), worker_group)

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Measure machines that were not measured before, and leave out those that are slow."""
        places, known = self._meet(worker_group), self._known()
        self._failed, self._lagging = False, set()
        fresh = any(known.records[machine].speed is None for machine in places)
        if not self._least_speed or not fresh or len(set(places)) < 2:
            return
        speeds = combine(worker_group.execute(measure, places), places)
        for machine, speed in speeds.items():
            known.records[machine].measure(speed, self._clock())
        self._store()
        self._leave_out(slow_machines(speeds, self._least_speed), worker_group)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Note the machines whose workers made the group fail."""
        if self._failed or not worker_group_status.errors or not self._places:
            return
        self._failed = True
        kinds = {r: kind for r, e in worker_group_status.errors.items() if (kind := failure_of(e))}
        known, now = self._known(), self._clock()
        blamed = blame(kinds, self._places)
        for machine in known.note_failures(sorted(blamed), now):
            record = known.records[machine]
            self._say(f"{record.address} is left out for a day: {record.left_out}")
        if blamed:
            self._store()

    def note_pace(self, paces: Mapping[int, float]) -> None:
        """Note how long each rank computes for a step; name those that lag when they begin to."""
        known = self._known()
        for machine in set(self._places):
            ranks = [rank for rank, place in enumerate(self._places) if place == machine]
            known.records[machine].pace = {r: paces[r] for r in ranks if r in paces}
            known.records[machine].at = self._clock()
        lagging = stragglers(paces)
        for rank in sorted(set(lagging) - self._lagging):
            address = known.records[self._places[rank]].address
            self._say(
                f"worker {rank} on {address} computes {paces[rank]:.3g} s a step, "
                f"{lagging[rank]:.1f} times as long as the median worker; the others wait for it"
            )
        if set(lagging) != self._lagging or self._clock() - self._stored_at > _STORE_EVERY_SECONDS:
            self._store()
        self._lagging = set(lagging)

    def _choose(self) -> set[str]:
        """Return the machines that are left out now, and tell the scaling policy."""
        rooms = rooms_of(self._nodes(), self._needs, self._workers.labels)
        known = self._known()
        known.forget(self._clock())
        out = known.left_out(rooms, self._workers.min)
        _left_out.clear()
        _left_out.update(out)
        return out

    def _leave_out(self, reasons: Mapping[str, str], worker_group: Any) -> None:
        """Leave machines out, and start again without them if the others have room."""
        known = self._known()
        for machine, why in reasons.items():
            known.leave_out(machine, why, self._clock())
        if not reasons:
            return
        self._store()
        out = self._choose()
        for machine, why in reasons.items():
            then = "left out for a day" if machine in out else "still needed"
            self._say(f"{known.records[machine].address} is {then}: {why}")
        if out & set(reasons):
            # Ray Train ends a group that fails to start only before its workers are there: these
            # would keep their room.
            worker_group.abort()
            raise WorkerGroupStartupFailedError("machines are left out: the group starts again")

    def _meet(self, worker_group: Any) -> list[str]:
        """Note the machines of a group; return them by rank."""
        workers, known = worker_group.get_workers(), self._known()
        for worker in workers:
            place = worker.metadata
            known.meet(place.node_id, place.node_ip, self._clock())
        self._places = [worker.metadata.node_id for worker in workers]
        return self._places

    def _known(self) -> Machines:
        if self._machines is None:
            records: dict[str, MachineRecord] = {}
            with suppress(OSError, PerennialError):
                records = read_machines(open_store(self._store_url), self._clock())
            self._machines = Machines(self._most_failures, records)
        return self._machines

    def _store(self) -> None:
        self._stored_at = self._clock()
        with suppress(OSError, PerennialError):
            store = open_store(self._store_url)
            # Trials of a search write too. A note that two at once still lose is in its writer's
            # memory, and comes with the next one.
            self._known().join(read_machines(store, self._stored_at))
            write_machines(store, self._known().records, self._stored_at)

    def _say(self, line: str) -> None:
        self._driver.notice.remote(line)


class GpuCheck(WorkerGroupCallback):  # type: ignore[misc]
    """Checks that workers see their GPUs, before a process group needs them."""

    def __init__(self, watch: MachineWatch) -> None:
        self._watch = watch

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Check a new group."""
        self._watch.check_gpus(worker_group)


def failure_of(error: BaseException) -> Failure | None:
    """Return how a worker failed; None where its machine is not at fault."""
    if isinstance(error, PerennialError) or is_preempted(error):
        return None
    if isinstance(error, HungWorker) or is_death(error):
        return "died"
    lost = isinstance(error, RuntimeError) and any(
        word in str(error).lower() for word in _CONNECTION_WORDS
    )
    return "lost-connection" if lost or isinstance(error, ConnectionError) else "raised"
