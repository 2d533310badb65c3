"""Simulate the goodput of a run on preemptible machines as discrete events. Pure, seeded.

Every worker is preempted as a Poisson process and its machine comes back after a while. The group
trains with `k` of its `most` workers at `k / most` of its speed (the global batch is constant, and
communication is not modelled), from `fewest` on; every change of its size restarts it. A preemption
whose notice is long enough for a checkpoint loses nothing; one without loses what was trained since
the last. Work is counted in seconds of training at full size.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from perennial.fields import Section

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
    replacement_seconds: until another machine is there in its place.
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
class SimulatedRun:
    """One simulated run: shares of its wall clock. `goodput` is the work that was kept over the
    work of a full group that nothing ever stops."""

    goodput: float
    preemptions: int
    lost: float
    restarting: float
    waiting: float
    checkpointing: float


@dataclass(frozen=True)
class Goodput:
    """Mean over the seeds, its standard deviation, and the mean share of every loss."""

    mean: float
    spread: float
    preemptions: float
    lost: float
    restarting: float
    waiting: float
    checkpointing: float


class _Simulation:
    """One walk through time; `run` is called once."""

    def __init__(self, fleet: Fleet, costs: Costs, workers: tuple[int, int], seed: int) -> None:
        self._fleet, self._costs = fleet, costs
        self._fewest, self._most = workers
        self._random = random.Random(seed)
        self._now = 0.0
        self._live = self._most
        self._returns: list[float] = []
        self._preemptions = 0
        self._kept = self._unsaved = 0.0
        self._lost = self._restarting = self._waiting = self._saving = 0.0

    def run(self, interval: float, horizon: float) -> SimulatedRun:
        while self._now < horizon:
            if self._live < self._fewest:
                began = self._now
                self._change(self._next_change())
                self._waiting += self._now - began
            elif self._restart():
                self._train(interval, horizon)
        wall = self._now
        return SimulatedRun(
            goodput=(self._kept + self._unsaved) / wall,
            preemptions=self._preemptions,
            lost=self._lost / wall,
            restarting=self._restarting / wall,
            waiting=self._waiting / wall,
            checkpointing=self._saving / wall,
        )

    def _restart(self) -> bool:
        """Start the group; False when the fleet changed meanwhile and it must start again."""
        at, taken = self._next_change()
        ready = self._now + self._costs.restart_seconds
        began = self._now
        if at < ready:
            self._change((at, taken))
        else:
            self._now = ready
        self._restarting += self._now - began
        return at >= ready

    def _train(self, interval: float, horizon: float) -> None:
        """Train, saving every `interval` seconds of full-size work, until the fleet changes."""
        speed = self._live / self._most
        at, taken = self._next_change()
        saved = not taken or self._fleet.notice_seconds >= self._costs.checkpoint_seconds
        until = at - self._fleet.notice_seconds if taken and saved else at
        end = max(min(until, horizon), self._now)
        while self._now < end:
            pause = (interval - self._unsaved) / speed
            if self._now + pause >= end:
                self._unsaved += (end - self._now) * speed
                self._now = end
            else:
                self._now += pause
                self._unsaved = interval
                self._save()
        if end == horizon:
            return
        if saved:  # a machine that comes back can always wait for a checkpoint
            self._save()
        else:
            self._lost += self._unsaved / speed
            self._unsaved = 0.0
        self._change((max(at, self._now), taken))

    def _save(self) -> None:
        self._kept += self._unsaved
        self._unsaved = 0.0
        self._now += self._costs.checkpoint_seconds
        self._saving += self._costs.checkpoint_seconds

    def _next_change(self) -> tuple[float, bool]:
        """Return the time of the fleet's next change, and True for a preemption.

        A Poisson process has no memory, so that the time may be drawn again at every call.
        """
        rate = self._live * self._fleet.preemptions_per_hour / 3600
        taken = self._now + self._random.expovariate(rate) if rate else math.inf
        back = self._returns[0] if self._returns else math.inf
        return (taken, True) if taken < back else (max(back, self._now), False)

    def _change(self, change: tuple[float, bool]) -> None:
        self._now, taken = change
        if taken:
            self._preemptions += 1
            self._live -= 1
            heapq.heappush(self._returns, self._now + self._fleet.replacement_seconds)
        else:
            heapq.heappop(self._returns)
            self._live += 1


def simulate(
    fleet: Fleet,
    costs: Costs,
    workers: tuple[int, int],
    interval_seconds: float,
    horizon_seconds: float,
    seeds: Sequence[int],
) -> Goodput:
    """Return the goodput of one choice of workers and checkpoint interval.

    Args:
        fleet: the machines.
        costs: of a checkpoint and a restart, in seconds.
        workers: the fewest and the most.
        interval_seconds: full-size work between two checkpoints.
        horizon_seconds: wall clock of one simulated run.
        seeds: one for each simulated run.
    """
    runs = [
        _Simulation(fleet, costs, workers, seed).run(interval_seconds, horizon_seconds)
        for seed in seeds
    ]
    return Goodput(
        mean=statistics.fmean(run.goodput for run in runs),
        spread=statistics.stdev([run.goodput for run in runs]) if len(runs) > 1 else 0.0,
        preemptions=statistics.fmean(run.preemptions for run in runs),
        lost=statistics.fmean(run.lost for run in runs),
        restarting=statistics.fmean(run.restarting for run in runs),
        waiting=statistics.fmean(run.waiting for run in runs),
        checkpointing=statistics.fmean(run.checkpointing for run in runs),
    )


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
    """

    def tried(fewest: int, interval: float) -> Goodput:
        return simulate(fleet, costs, (fewest, most), interval, horizon_seconds, seeds)

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
