"""Simulate the goodput of a run on preemptible machines as discrete events. Pure, seeded.

Every machine is preempted as a Poisson process, and another one takes its place after a while,
counted from the notice: the group leaves a machine when it is given notice, and so does its
replacement begin. The group trains with `k` of its `most` workers at `k / most` of its speed (the
global batch is constant, and communication is not modelled), from `fewest` on. It restarts when it
loses a machine, and when it is worth it to take in those that came back (`training/growth.py`). A
notice that is long enough for a checkpoint loses nothing; without one what was trained since the
last is lost. Work is counted in seconds of training at full size.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated

from pydantic import Field

from perennial.fields import Section
from perennial.training.growth import PATIENCE, GrowthDecision

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CostsSpec(Section):
    """A costs file: what was measured of a run, in seconds, and where."""

    source: Annotated[str, Field(min_length=1)]
    """where the numbers were measured: machine, model, date"""
    step_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """seconds of one optimizer step of the full group, above 0"""
    checkpoint_seconds: Seconds
    """seconds for which one checkpoint halts training, at least 0"""
    restart_seconds: Seconds
    """seconds from the loss of a worker to the next step of the others, at least 0"""


@dataclass(frozen=True)
class Fleet:
    """Machines, one a worker.

    preemptions_per_hour: of one machine. notice_seconds: from the warning to the end.
    replacement_seconds: from the warning, until another machine is there in its place.
    """

    preemptions_per_hour: float
    notice_seconds: float
    replacement_seconds: float


@dataclass(frozen=True)
class Costs:
    """Measured costs of the run. checkpoint_seconds: how long one checkpoint halts training;
    restart_seconds: from the loss of a worker to the next step of the others."""

    checkpoint_seconds: float
    restart_seconds: float


@dataclass(frozen=True)
class Shares:
    """Shares of the wall clock, which add up to 1.

    goodput: work that was kept, over that of a full group that nothing ever stops. lost: work that
    was done again, in the same unit. restarting, waiting (for `fewest` machines), checkpointing:
    without training. missing: what machines that were not in the group did not do.
    """

    goodput: float
    lost: float
    restarting: float
    waiting: float
    checkpointing: float
    missing: float


@dataclass(frozen=True)
class SimulatedRun(Shares):
    """One simulated run, and how often it was preempted and restarted."""

    preemptions: int
    restarts: int


@dataclass(frozen=True)
class Goodput(Shares):
    """Means over the seeds, and the standard deviation of the goodput."""

    spread: float
    preemptions: float
    restarts: float

    @property
    def mean(self) -> float:
        """Return the mean goodput."""
        return self.goodput


class _Changes:
    """When which machine goes and another comes in its place, whatever the group does."""

    def __init__(self, fleet: Fleet, machines: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._mean = 3600 / fleet.preemptions_per_hour if fleet.preemptions_per_hour else math.inf
        self._replacement = fleet.replacement_seconds
        self._queue = [(self._draw(), machine, True) for machine in range(machines)]
        heapq.heapify(self._queue)

    @property
    def at(self) -> float:
        """Return when the next change is."""
        return self._queue[0][0]

    def take(self) -> tuple[int, bool]:
        """Return the machine of the next change, and True where it goes."""
        at, machine, goes = heapq.heappop(self._queue)
        later = self._replacement if goes else self._draw()
        heapq.heappush(self._queue, (at + later, machine, not goes))
        return machine, goes

    def _draw(self) -> float:
        return self._random.expovariate(1.0) * self._mean


class _Simulation:
    """One walk through time; `run` is called once."""

    def __init__(
        self, fleet: Fleet, costs: Costs, workers: tuple[int, int], patience: float, seed: int
    ) -> None:
        self._costs = costs
        self._fewest, self._most = workers
        self._saves = fleet.notice_seconds >= costs.checkpoint_seconds
        self._changes = _Changes(fleet, self._most, seed)
        self._growth = GrowthDecision(patience)
        self._now = 0.0
        self._live = set(range(self._most))
        self._group: set[int] = set()
        self._preemptions = self._restarts = 0
        self._kept = self._unsaved = self._lost = self._missing = 0.0
        self._restarting = self._waiting = self._saving = 0.0

    def run(self, interval: float, horizon: float) -> SimulatedRun:
        while self._now < horizon:
            if len(self._live) < self._fewest:
                self._waiting += self._pass(horizon)
            elif self._restart(horizon):
                self._train(interval, horizon)
        return SimulatedRun(
            goodput=(self._kept + self._unsaved) / horizon,
            lost=self._lost / horizon,
            restarting=self._restarting / horizon,
            waiting=self._waiting / horizon,
            checkpointing=self._saving / horizon,
            missing=self._missing / horizon,
            preemptions=self._preemptions,
            restarts=self._restarts,
        )

    def _pass(self, until: float) -> float:
        """Let time pass until then, or the fleet's next change; return the seconds."""
        began, at = self._now, self._changes.at
        self._now = max(began, min(at, until))
        if at <= until:
            machine, goes = self._changes.take()
            self._preemptions += goes
            (self._live.discard if goes else self._live.add)(machine)
        return self._now - began

    def _restart(self, horizon: float) -> bool:
        """Start the group with all machines; return False where it loses one meanwhile."""
        self._group = set(self._live)
        self._restarts += 1
        self._growth.note_start()
        ready = self._now + self._costs.restart_seconds
        while self._now < min(ready, horizon):
            self._restarting += self._pass(min(ready, horizon))
            if not self._group <= self._live:
                return False
        return True

    def _train(self, interval: float, horizon: float) -> None:
        """Train, saving every `interval` seconds of full-size work, until the group restarts."""
        speed = len(self._group) / self._most
        while self._now < horizon:
            idle = len(self._live - self._group)
            left = self._growth.seconds_left(len(self._group), idle, self._costs.restart_seconds)
            due, grow = self._now + max(0.0, interval - self._unsaved) / speed, self._now + left
            if grow <= self._now:
                self._save(horizon)
                return
            seconds = self._pass(min(due, grow, horizon))
            self._growth.advance(seconds, idle)
            self._unsaved += seconds * speed
            self._missing += seconds * (1 - speed)
            if not self._group <= self._live:
                self._end_group(horizon)
                return
            if self._now >= due and not self._save(horizon):
                return

    def _end_group(self, horizon: float) -> None:
        """Save after a notice that is long enough; without one lose what was not saved."""
        self._growth.note_loss()
        if self._saves:
            self._save(horizon)
        else:
            self._lost += self._unsaved
            self._unsaved = 0.0

    def _save(self, horizon: float) -> bool:
        """Save what was trained; return False where a machine is lost meanwhile."""
        ready, whole = self._now + self._costs.checkpoint_seconds, self._group <= self._live
        while self._now < min(ready, horizon):
            self._saving += self._pass(min(ready, horizon))
            if whole and not self._group <= self._live and not self._saves:
                self._end_group(horizon)
                return False
        if ready <= horizon:
            self._kept += self._unsaved
            self._unsaved = 0.0
        if whole and not self._group <= self._live:
            self._growth.note_loss()
        return self._group <= self._live


def simulate(
    fleet: Fleet,
    costs: Costs,
    workers: tuple[int, int],
    interval_seconds: float,
    horizon_seconds: float,
    seeds: Sequence[int],
    patience: float = PATIENCE,
) -> Goodput:
    """Return the goodput of one choice of workers and checkpoint interval.

    Args:
        fleet: the machines.
        costs: of a checkpoint and a restart, in seconds.
        workers: the fewest and the most.
        interval_seconds: full-size work between two checkpoints.
        horizon_seconds: wall clock of one simulated run.
        seeds: one for each simulated run.
        patience: of a group that could grow; see `training/growth.py`.
    """
    runs = [
        _Simulation(fleet, costs, workers, patience, seed).run(interval_seconds, horizon_seconds)
        for seed in seeds
    ]
    spread = statistics.stdev([run.goodput for run in runs]) if len(runs) > 1 else 0.0
    means = {
        field.name: statistics.fmean(getattr(run, field.name) for run in runs)
        for field in fields(SimulatedRun)
    }
    return Goodput(spread=spread, **means)


@dataclass(frozen=True)
class FleetSearch:
    """Goodput by interval (seconds of full-size work) and by the fewest workers, and the best."""

    by_interval: dict[float, Goodput]
    by_fewest: dict[int, Goodput]
    best_interval: float
    best_fewest: int


def search(
    fleet: Fleet,
    costs: Costs,
    most: int,
    step_seconds: float,
    horizon_seconds: float,
    seeds: Sequence[int],
    patience: float = PATIENCE,
) -> FleetSearch:
    """Return the checkpoint interval and the fewest workers that give most goodput.

    All candidates see the same seeds. Intervals are whole steps around Young's, tried with the
    best fewest workers of Young's interval.

    Args:
        fleet: the machines.
        costs: of a checkpoint and a restart, in seconds.
        most: workers at most.
        step_seconds: of one optimizer step of the full group.
        horizon_seconds: wall clock of one simulated run.
        seeds: one for each simulated run.
        patience: of a group that could grow.
    """

    def tried(fewest: int, interval: float) -> Goodput:
        return simulate(fleet, costs, (fewest, most), interval, horizon_seconds, seeds, patience)

    centre = min(young_interval(fleet, costs, most), horizon_seconds)
    steps = {max(1, round(centre * 2 ** (k / 2) / step_seconds)) for k in range(-6, 7)}
    candidates = sorted({max(1, round(most * share / 8)) for share in range(1, 9)})
    middle = max(1, round(centre / step_seconds)) * step_seconds
    by_fewest = {fewest: tried(fewest, middle) for fewest in candidates}
    best_fewest = max(by_fewest, key=lambda fewest: by_fewest[fewest].mean)
    by_interval = {
        count * step_seconds: tried(best_fewest, count * step_seconds) for count in sorted(steps)
    }
    best = max(by_interval, key=lambda interval: by_interval[interval].mean)
    return FleetSearch(by_interval, by_fewest, best, best_fewest)


def young_interval(fleet: Fleet, costs: Costs, workers: int) -> float:
    """Return Young's first-order best interval in seconds; infinite where nothing fails.

    It is sqrt(2 x checkpoint x time between failures) (Communications of the ACM 17(9), 1974).

    Args:
        fleet: the machines.
        costs: of a checkpoint, in seconds.
        workers: number of machines.
    """
    rate = workers * fleet.preemptions_per_hour / 3600
    return math.sqrt(2 * costs.checkpoint_seconds / rate) if rate else math.inf
