"""What still has to reach MLflow: in order, bounded, shared by callers and the delivery thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

Status = Literal["FINISHED", "FAILED", "KILLED", "RUNNING"]

BY_TOKENS = "versus_tokens/"
"""begins the names of values at a number of tokens in place of a step; MLflow sorts charts by the
word before the first slash, so these are behind all others"""
BATCH_POINTS = 1000
"""most values that MLflow takes in one call"""
KEPT_POINTS = 200_000
"""values kept for an MLflow that is down, about 40 MB"""
KEPT_ARTIFACT_BYTES = 64 * 2**20


class MetricPoint(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    timestamp_ms: int
    step: int


class Artifact(NamedTuple):
    """One file; `name` may have folders: `plots/matrix.png`."""

    name: str
    data: bytes


class End(NamedTuple):
    """The state in which a run ended, and the time; RUNNING for one that goes on after all."""

    status: Status
    timestamp_ms: int


class Tag(NamedTuple):
    """One fact about a run; it replaces an older one of its name."""

    name: str
    text: str


class Registration(NamedTuple):
    """A release in the model registry; `aliases` move to it from any other release.

    location: where its files lie, a path or a URL
    """

    model: str
    release: str
    location: str
    aliases: tuple[str, ...]
    tags: tuple[tuple[str, str], ...]


class Found(NamedTuple):
    """A run that a tracking service has: its id, and the last step of each of its metrics.

    complete: the run once had everything that the store knew.
    """

    run_id: str
    steps: dict[str, int]
    complete: bool


Other = Artifact | Tag | Registration | End
Item = MetricPoint | Other


@dataclass
class Lost:
    """Values and files that were given up: over the bound, or refused by MLflow."""

    points: int = 0
    steps: tuple[int, int] = (0, 0)
    others: list[str] = field(default_factory=list)

    def add(self, item: Item) -> None:
        """Count one more."""
        match item:
            case MetricPoint(step=step):
                first, last = self.steps if self.points else (step, step)
                self.points, self.steps = self.points + 1, (min(first, step), max(last, step))
            case Artifact(name=name):
                self.others.append(f"artifact {name}")
            case Tag(name=name):
                self.others.append(f"tag {name}")
            case Registration(release=release):
                self.others.append(f"the registration of {release}")
            case End(status=status):
                self.others.append(f"its end as {status}")


@dataclass
class Pending:
    """One run and what it still has to deliver. Only an Outbox changes it.

    key: what the run is found by in MLflow: `lineage` or `lineage/name`.
    id: MLflow's run id: the one that was given, or None until it is known.
    attached: whether MLflow is known to have the run.
    steps: the highest step taken of each metric; what is at or below it is there already.
    parent: the run that MLflow shows it under, made before it; None is the lineage's own.
    reopens: whether it is running from the moment at which it is attached.
    """

    key: str
    name: str
    id: str | None
    params: dict[str, str]
    tags: dict[str, str]
    attached: bool = False
    points: deque[MetricPoint] = field(default_factory=deque)
    artifacts: deque[Artifact] = field(default_factory=deque)
    updates: dict[str, Tag] = field(default_factory=dict)
    registrations: deque[Registration] = field(default_factory=deque)
    end: End | None = None
    steps: dict[str, int] = field(default_factory=dict)
    lost: Lost = field(default_factory=Lost)
    parent: Pending | None = None
    reopens: bool = True

    @property
    def delivered(self) -> bool:
        """Return whether nothing is left to send."""
        return self.attached and not (self.points or self.others)

    @property
    def others(self) -> list[Other]:
        """Return what is left besides values."""
        end = (self.end,) if self.end else ()
        return [*self.artifacts, *self.updates.values(), *self.registrations, *end]

    def missing(self) -> str:
        """Return what MLflow does not have, in words; "" when it has everything."""
        missing = Lost(self.lost.points, self.lost.steps, list(self.lost.others))
        for item in (*self.points, *self.others):
            missing.add(item)
        words = [] if self.attached else ["the run itself"]
        if missing.points:
            first, last = missing.steps
            words.append(f"{missing.points} values of steps {first} to {last}")
        words += missing.others
        return f"{self.key}: {', '.join(words)}" if words else ""


class Receipt(NamedTuple):
    """The account of one tracker: what it delivered to MLflow, and what it did not.

    Attributes:
        runs: runs that MLflow is known to have.
        values: values of metrics that were written; those that were there already do not count.
        files: artifacts that were written.
        missing: what MLflow does not have of each run, in words that begin with the run's key.
        reason: why; "" where nothing is missing.
    """

    runs: int
    values: int
    files: int
    missing: tuple[str, ...]
    reason: str


def merge_receipts(receipts: Sequence[Receipt]) -> Receipt:
    """Return the account of several services as one.

    What is missing, and why, is that of the first service that lacks anything; the numbers are
    those of the first.
    """
    lacking = next((receipt for receipt in receipts if receipt.missing), receipts[0])
    return receipts[0]._replace(missing=lacking.missing, reason=lacking.reason)


class Outbox:
    """The runs of one tracker; every method returns at once but those that say they wait.

    Attributes:
        closing: nothing more is coming.
        completing: the lineage's own run shall be marked once all is delivered.
        complete: MLflow once had all that the store knew; None until the run is there.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._runs: dict[str, Pending] = {}
        self._urgent = False
        self._abandoned = False
        self._failing = False
        self._values = self._files = 0
        self.closing = False
        self.completing = False
        self.complete: bool | None = None

    def add(self, run: Pending) -> Pending:
        """The run with this key: the one that is here already, else the new one."""
        with self._changed:
            self._notify_urgent()
            return self._runs.setdefault(run.key, run)

    def runs(self) -> list[Pending]:
        """All runs, in the order in which they were added."""
        with self._changed:
            return list(self._runs.values())

    def put(self, run: Pending, items: Iterable[Item]) -> None:
        """Keep what is new; what is over a bound counts as lost."""
        with self._changed:
            points = sum(len(run.points) for run in self._runs.values())
            for item in items:
                match item:
                    case MetricPoint() if item.step <= run.steps.get(item.name, -1):
                        pass
                    case MetricPoint() if points < KEPT_POINTS:
                        run.steps[item.name] = item.step
                        run.points.append(item)
                        points += 1
                    case Artifact() if self._artifact_bytes() + len(item.data) <= (
                        KEPT_ARTIFACT_BYTES
                    ):
                        run.artifacts.append(item)
                        self._notify_urgent()
                    case Tag():
                        run.updates[item.name] = item
                        self._notify_urgent()
                    case Registration():
                        run.registrations.append(item)
                        self._notify_urgent()
                    case End():
                        run.end = item
                        self._notify_urgent()
                    case _:
                        run.lost.add(item)
            self._changed.notify_all()

    def batch(self, run: Pending) -> list[MetricPoint]:
        """The oldest values, as many as one call takes; they stay until they are `done`."""
        with self._changed:
            return list(islice(run.points, BATCH_POINTS))

    def others(self, run: Pending) -> list[Other]:
        """The run's files, tags, registrations and end; they stay until they are `done`."""
        with self._changed:
            return run.others

    def done(self, run: Pending, items: Iterable[Item], lost: bool = False) -> None:
        """MLflow has these items, the oldest of their kind, or (lost) refused them."""
        with self._changed:
            for item in items:
                match item:
                    case MetricPoint():
                        run.points.popleft()
                    case Artifact():
                        run.artifacts.remove(item)
                    case Tag() if run.updates.get(item.name) == item:
                        del run.updates[item.name]
                    case Registration():
                        run.registrations.remove(item)
                    case End():
                        run.end = None if run.end is item else run.end
                if lost:
                    run.lost.add(item)
                else:
                    self._values += isinstance(item, MetricPoint)
                    self._files += isinstance(item, Artifact)

    def attach(self, run: Pending, run_id: str, steps: Mapping[str, int]) -> None:
        """Record that MLflow has the run, and of each metric the values up to these steps."""
        with self._changed:
            run.id, run.attached = run_id, True
            run.points = deque(p for p in run.points if p.step > steps.get(p.name, -1))
            for name, step in steps.items():
                run.steps[name] = max(step, run.steps.get(name, -1))
            self._changed.notify_all()

    def detach(self) -> None:
        """Record that MLflow may have lost the runs: they are looked up, or made, again."""
        with self._changed:
            for run in self._runs.values():
                run.attached = False

    def tried(self, failed: bool) -> None:
        """Record how an attempt to deliver ended; while they fail, no caller waits for an id."""
        with self._changed:
            self._failing = failed
            self._changed.notify_all()

    def ask_mark(self) -> None:
        """Have the lineage's own run marked as complete once all is delivered."""
        with self._changed:
            self.completing = True
            self._notify_urgent()

    def marked(self) -> None:
        """Record that the lineage's own run is marked as complete."""
        with self._changed:
            self.completing, self.complete = False, True

    @property
    def brought(self) -> int:
        """Return the number of runs, values and files that MLflow took so far."""
        with self._changed:
            attached = sum(run.attached for run in self._runs.values())
            return attached + self._values + self._files

    def close(self) -> None:
        """Nothing more is coming: delivery should hurry."""
        with self._changed:
            self.closing = True
            self._notify_urgent()

    def abandon(self, reason: str) -> Receipt:
        """Stop delivering, and return what was delivered and what was not."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
            runs = list(self._runs.values())
            missing = tuple(words for run in runs if (words := run.missing()))
            attached = sum(run.attached for run in runs)
            why = reason if missing else ""
            return Receipt(attached, self._values, self._files, missing, why)

    def wait_for_work(self) -> bool:
        """Wait until there is something to deliver; False when there is nothing any more."""
        with self._changed:
            self._changed.wait_for(lambda: self.closing or self._abandoned or self._work())
            self._urgent = False
            return self._work() and not self._abandoned

    def pause(self, seconds: float) -> None:
        """Wait so long, less when something comes that is not just another value."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._urgent or self._abandoned or (self.closing and not self._work()),
                seconds,
            )

    def wait_id(self, run: Pending, timeout_seconds: float) -> str | None:
        """MLflow's run id, waiting for it at most so long, and not while MLflow fails."""
        with self._changed:
            self._changed.wait_for(
                lambda: run.id is not None or self._failing or self._abandoned, timeout_seconds
            )
            return run.id

    def _work(self) -> bool:
        return self.completing or any(not run.delivered for run in self._runs.values())

    def _artifact_bytes(self) -> int:
        return sum(len(a.data) for run in self._runs.values() for a in run.artifacts)

    def _notify_urgent(self) -> None:
        self._urgent = True
        self._changed.notify_all()
