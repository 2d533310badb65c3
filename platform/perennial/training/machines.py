"""Judge the machines of a worker group: their failures, their speed, their pace. Pure.

`machines.json` in the store holds what is known of them. The controllers of the run's worker groups
begin with it, and add to it what they note; `perennial status` reads it.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from perennial.errors import PerennialError
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from perennial.store import Store

KEY = "machines.json"
REMEMBERED_SECONDS = 24 * 3600.0
"""Age at which a failure, or a measurement, no longer counts."""
STRAGGLER_FACTOR = 1.5
"""Of the median rank's computing time, from which on a rank is named."""
_STEPS_OF_PACE = 20

Failure = Literal["died", "raised", "lost-connection"]
"""how a worker failed: its process ended or hung; an error of its own; it lost the others"""


class MachineSpeed(NamedTuple):
    """A machine's speed before training.

    flops: operations a second of a matrix product, on its slowest worker.
    inside: bytes a second of an all-reduce among its own workers (bus bandwidth); None with one.
    between: the same with another machine, the better of two; None for a lone machine.
    """

    flops: float
    inside: float | None = None
    between: float | None = None


@dataclass
class MachineRecord:
    """Notes about a machine.

    address: of the machine, as users know it.
    failures: when workers failed on it, in seconds since 1970.
    speed: before training; None where it was not measured.
    pace: seconds that each of its ranks computes for a step, by rank.
    left_out: why no worker is placed on it; empty where workers are.
    at: when something of this was last noted, in seconds since 1970.
    left_out_at, measured_at: when it was left out, and its speed measured; 0 where it was not.
    """

    address: str
    failures: list[float] = field(default_factory=list)
    speed: MachineSpeed | None = None
    pace: dict[int, float] = field(default_factory=dict)
    left_out: str = ""
    at: float = 0.0
    left_out_at: float = 0.0
    measured_at: float = 0.0

    def measure(self, speed: MachineSpeed, now: float) -> None:
        """Note the machine's speed."""
        self.speed, self.measured_at = speed, now

    def leave_out(self, why: str, now: float) -> None:
        """Note why no worker is placed on the machine."""
        self.left_out, self.left_out_at, self.at = why, now, now

    def forget(self, now: float) -> None:
        """Drop what is too old, of a machine that workers are on too."""
        self.failures = [at for at in self.failures if now - at < REMEMBERED_SECONDS]
        if now - self.left_out_at >= REMEMBERED_SECONDS:
            self.left_out = ""
        if now - self.measured_at >= REMEMBERED_SECONDS:
            self.speed = None

    def join(self, other: MachineRecord) -> None:
        """Take over what another process has noted of the machine."""
        self.failures = sorted((Counter(self.failures) | Counter(other.failures)).elements())
        if other.left_out_at > self.left_out_at:
            self.left_out, self.left_out_at = other.left_out, other.left_out_at
        if other.speed is not None and other.measured_at > self.measured_at:
            self.measure(other.speed, other.measured_at)
        if other.at > self.at:
            self.address, self.pace, self.at = other.address, other.pace, other.at

    def describe(self) -> str:
        """Return the record in a line."""
        parts = [f"left out: {self.left_out}"] if self.left_out else []
        if self.failures and not self.left_out:
            times = "once" if len(self.failures) == 1 else f"{len(self.failures)} times"
            parts.append(f"workers failed on it {times} within a day")
        if self.speed is not None:
            parts.append(describe_speed(self.speed))
        parts += [f"worker {rank} computes {s:.3g} s a step" for rank, s in self.pace.items()]
        return f"{self.address}: {', '.join(parts) or 'nothing noted'}"


def describe_speed(speed: MachineSpeed) -> str:
    """Return a machine's speed in words."""
    parts = [f"{speed.flops / 1e12:.3g} TFLOP/s"]
    if speed.inside is not None:
        parts.append(f"{speed.inside / 1e9:.3g} GB/s inside")
    if speed.between is not None:
        parts.append(f"{speed.between / 1e9:.3g} GB/s to others")
    return ", ".join(parts)


def blame(failures: Mapping[int, Failure], machines: Sequence[str]) -> set[str]:
    """Return the machines whose workers made a group fail.

    What all machines of several did is a bug's doing, or the cluster's, and none is blamed.

    Args:
        failures: by rank, how its worker failed.
        machines: by rank, the machine of its worker.
    """
    for kind in ("died", "raised"):
        culprits = {machines[rank] for rank, failure in failures.items() if failure == kind}
        if culprits:
            return culprits if culprits != set(machines) or len(culprits) == 1 else set()
    return set()


def slow_machines(speeds: Mapping[str, MachineSpeed], least: float) -> dict[str, str]:
    """Return why machines are slow, by machine.

    Args:
        speeds: of all machines of a group.
        least: share of the median machine's speed that each should reach, 0 to 1.
    """
    slow: dict[str, str] = {}
    names = {"flops": "matrix products", "inside": "all-reduce inside", "between": "all-reduce"}
    for part, name in names.items():
        measured = {m: s for m, speed in speeds.items() if (s := getattr(speed, part)) is not None}
        if len(measured) < 2:
            continue
        # Of two machines the faster one is what a machine can do.
        usual = statistics.median_high(measured.values())
        for machine, speed in measured.items():
            if speed < least * usual:
                why = f"{name} at {speed / usual:.0%} of the median machine's speed"
                slow[machine] = f"{slow[machine]}, {why}" if machine in slow else why
    return slow


def rooms_of(
    nodes: Iterable[Mapping[str, Any]], needs: Mapping[str, float], labels: Mapping[str, str]
) -> dict[str, int]:
    """Return how many workers each machine of a cluster has room for, were it empty.

    Args:
        nodes: as `ray.nodes()` describes them.
        needs: resources that a worker takes.
        labels: that a worker's machine must have.
    """
    rooms = {}
    for node in nodes:
        if node["Alive"] and labels.items() <= (node.get("Labels") or {}).items():
            has = node["Resources"]
            counts = [has.get(name, 0.0) // amount for name, amount in needs.items() if amount]
            rooms[node["NodeID"]] = int(min(counts))
    return rooms


class Machines:
    """The machines that a job has met, and which of them are left out."""

    def __init__(self, most_failures: int, records: Mapping[str, MachineRecord]) -> None:
        """Begin with what is known; `most_failures` within a day leave a machine out."""
        self._most_failures = most_failures
        self.records = dict(records)

    def note_failures(self, machines: Iterable[str], now: float) -> list[str]:
        """Note that workers failed on machines; return those that are left out from now on."""
        out = []
        for machine in machines:
            record = self.records[machine]
            recent = [at for at in record.failures if now - at < REMEMBERED_SECONDS]
            record.failures, record.at = [*recent, now], now
            if len(record.failures) >= self._most_failures and not record.left_out:
                times = len(record.failures)
                record.leave_out(f"workers failed on it {times} times within a day", now)
                out.append(machine)
        return out

    def meet(self, machine: str, address: str, now: float) -> None:
        """Note a machine that workers are on."""
        record = self.records.setdefault(machine, MachineRecord(address))
        record.address, record.at = address, now

    def leave_out(self, machine: str, why: str, now: float) -> None:
        """Place no worker on a machine from now on."""
        self.records[machine].leave_out(why, now)

    def join(self, records: Mapping[str, MachineRecord]) -> None:
        """Take over what other processes have noted, such as the trials of a search."""
        for machine, record in records.items():
            self.records.setdefault(machine, record).join(record)

    def forget(self, now: float) -> None:
        """Drop what is too old: machines that were left out may be tried again."""
        self.records = _remembered(self.records, now)

    def left_out(self, rooms: Mapping[str, int], fewest: int) -> set[str]:
        """Return the machines on which no worker is placed.

        Where the others have no room for the fewest workers, none is left out: slow training is
        better than none, and its end has its own rules.

        Args:
            rooms: number of workers that each machine of the cluster has room for.
            fewest: workers that training needs.
        """
        out = {machine for machine, record in self.records.items() if record.left_out}
        out &= set(rooms)
        room = sum(count for machine, count in rooms.items() if machine not in out)
        return out if room >= fewest else set()


class RankPaces:
    """Seconds that each rank computes for a step, from what the ranks have done so far."""

    def __init__(self) -> None:
        """Begin with a worker group that has done nothing."""
        self._first: dict[int, tuple[int, float]] = {}
        self._last: dict[int, tuple[int, float]] = {}

    def hear(self, rank: int, steps: int, seconds: float) -> None:
        """Note the steps that a rank has finished, and the seconds that it computed in them."""
        if steps:
            self._first.setdefault(rank, (steps, seconds))
            self._last[rank] = (steps, seconds)

    def take(self, world_size: int) -> dict[int, float]:
        """Return the seconds of a step by rank since the last call; empty before enough steps."""
        paces = {
            rank: (seconds - self._first[rank][1]) / (steps - self._first[rank][0])
            for rank, (steps, seconds) in self._last.items()
            if steps - self._first[rank][0] >= _STEPS_OF_PACE
        }
        if len(paces) < world_size:
            return {}
        self._first = dict(self._last)
        return paces


def stragglers(paces: Mapping[int, float]) -> dict[int, float]:
    """Return the ranks that compute much longer than the median, and how many times as long."""
    if len(paces) < 2:
        return {}
    usual = statistics.median_low(paces.values())
    return {
        rank: seconds / usual
        for rank, seconds in paces.items()
        if usual and seconds >= STRAGGLER_FACTOR * usual
    }


def read_machines(store: Store, now: float) -> dict[str, MachineRecord]:
    """Return what is known of machines, without what is too old; empty where it cannot be read."""
    try:
        data = parse_json(store.read(KEY))
        records = {machine: _record(note) for machine, note in data["machines"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, PerennialError):
        return {}
    return _remembered(records, now)


def _remembered(records: Mapping[str, MachineRecord], now: float) -> dict[str, MachineRecord]:
    """Return the records, without what is too old of each."""
    known = {m: record for m, record in records.items() if now - record.at < REMEMBERED_SECONDS}
    for record in known.values():
        record.forget(now)
    return known


def write_machines(store: Store, records: Mapping[str, MachineRecord], now: float) -> None:
    """Store what is known of machines; a store that cannot be written to is reported elsewhere."""
    kept = {m: asdict(r) for m, r in records.items() if now - r.at < REMEMBERED_SECONDS}
    try:
        store.write(KEY, json.dumps({"format": 1, "machines": kept}, indent=1).encode())
    except (OSError, PerennialError):
        return


def _record(data: Mapping[str, Any]) -> MachineRecord:
    speed = data["speed"]
    return MachineRecord(
        address=str(data["address"]),
        failures=[float(at) for at in data["failures"]],
        speed=None if speed is None else MachineSpeed(*speed),
        pace={int(rank): float(seconds) for rank, seconds in data["pace"].items()},
        left_out=str(data["left_out"]),
        at=float(data["at"]),
        left_out_at=float(data["left_out_at"]),
        measured_at=float(data["measured_at"]),
    )
