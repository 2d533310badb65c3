"""Forecast the goodput of a run on preemptible machines: `perennial simulate`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from perennial.errors import InputError
from perennial.planning.spot_fleet import (
    Costs,
    CostsSpec,
    Fleet,
    FleetSearch,
    Goodput,
    search,
    simulate,
)
from perennial.training.growth import AT_ONCE, PATIENCE

if TYPE_CHECKING:
    from perennial.config import RunSpec


@dataclass(frozen=True)
class FleetSettings:
    """Settings of a run, and their goodput.

    Attributes:
        min_workers: fewest workers that the run trains with.
        checkpoint_every: optimizer steps between two checkpoints.
    """

    min_workers: int
    checkpoint_every: int
    goodput: Goodput


@dataclass(frozen=True)
class FleetForecast:
    """The goodput of a run on a fleet, and of the settings around its own.

    Attributes:
        max_workers: of the run file.
        current: the run file's settings.
        best: those with most goodput; `current` where nothing that was tried has more.
        tried: goodput by checkpoint interval and by fewest workers.
    """

    fleet: Fleet
    costs: CostsSpec
    max_workers: int
    current: FleetSettings
    best: FleetSettings
    tried: FleetSearch

    def to_dict(self, measured: float | None = None) -> dict[str, Any]:
        """Return the JSON-ready form; `measured` is the goodput of a real run."""
        current = self.current
        return {
            "source": self.costs.source,
            "fleet": asdict(self.fleet),
            "workers": {"min": current.min_workers, "max": self.max_workers},
            "checkpoint_every_steps": current.checkpoint_every,
            "goodput": _to_json(current.goodput),
            "error": None if measured is None else current.goodput.mean - measured,
            "best": {
                "workers": {"min": self.best.min_workers, "max": self.max_workers},
                "checkpoint_every_steps": self.best.checkpoint_every,
                "goodput": _to_json(self.best.goodput),
            },
        }


def _to_json(goodput: Goodput) -> dict[str, float]:
    shares = asdict(goodput)
    return {"mean": shares.pop("goodput"), **shares}


def forecast_fleet(
    spec: RunSpec, costs: CostsSpec, fleet: Fleet, horizon_seconds: float, seeds: Sequence[int]
) -> FleetForecast:
    """Simulate a run file's settings, and search better ones.

    Args:
        spec: the run file.
        costs: what was measured of the run, in seconds.
        fleet: the machines.
        horizon_seconds: wall clock of one simulated run.
        seeds: one for each simulated run.

    Raises:
        InputError: workers come and go in groups (`simulation-of-groups`).
    """
    if spec.training.tensor_parallel > 1:
        raise InputError(
            "run file",
            "training.tensor_parallel",
            "the simulation loses one worker at a time, and here a machine has several",
            "simulate with training.tensor_parallel=1 and one worker for each group",
            code="simulation-of-groups",
        )
    workers = (spec.training.workers.min, spec.training.workers.max)
    every = max(1, spec.training.checkpoint_every.steps(0, spec.tokens_per_step))
    cost = Costs(costs.checkpoint_seconds, costs.restart_seconds)
    step = costs.step_seconds
    patience = AT_ONCE if spec.training.workers.grow == "at-once" else PATIENCE
    goodput = simulate(fleet, cost, workers, every * step, horizon_seconds, seeds, patience)
    current = FleetSettings(workers[0], every, goodput)
    tried = search(fleet, cost, workers[1], step, horizon_seconds, seeds, patience)
    best = FleetSettings(
        tried.best_fewest,
        round(tried.best_interval / step),
        tried.by_interval[tried.best_interval],
    )
    if current.goodput.mean >= best.goodput.mean:
        best = current
    return FleetForecast(fleet, costs, workers[1], current, best, tried)
