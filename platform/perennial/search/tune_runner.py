"""Run the trials of a search under Ray Tune.

Tune decides nothing that it would have to remember: the bench writes every measurement down, and
answers at once for what was measured before. So a search that was killed runs again from its
beginning, and only what is missing is trained. A trial's workers are gone before it reports, so
that nothing of it is left in the cluster when Tune ends it (ray-project/ray#54305).
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from perennial.causes import describe
from perennial.config.search import Child, Choices, Point, Span
from perennial.errors import TrialFailed
from perennial.search.advisor import next_point
from perennial.search.front import Pair, survivors

if TYPE_CHECKING:
    from perennial.config.search import TuningSpec
    from perennial.search.bench import P, TrialBench
    from perennial.search.space import Space

_DRIVER_CPUS = 0.01
"""of a trial's driver, which only waits for its workers: Ray Tune demands a resource for it"""
_RETRIES = 2
"""number of times that a trial whose process or node died is started again"""
_FIRST, _SECOND = "objective_1", "objective_2"
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


@dataclass(frozen=True)
class Trials:
    """Settings of all runs of Ray Tune in one search.

    Attributes:
        bench: trains and measures; it is copied into the trials' processes.
        concurrent: trials at a time.
        seeds: trials of one point.
        log: called with a line for every trial that is done.
    """

    bench: TrialBench[Any]
    concurrent: int
    seeds: int
    log: Callable[[str], None]


Propose = Callable[[Mapping[Point, Pair], Sequence[Point]], Point | None]
"""returns the next point, from the finished ones and those under way; None when there is none"""
Rounds = Mapping[int, Mapping[Point, Pair]]
"""objectives of the points, by the steps after which they were compared"""


def run_search(
    trials: Trials,
    spec: TuningSpec,
    space: Space,
    rungs: Sequence[int],
    tokens_per_step: int,
    begun: Sequence[Point],
) -> Rounds:
    """Run all trials of a tuning file. Ray must be initialised.

    Args:
        trials: how they are run.
        spec: the tuning file.
        space: the points of the search.
        rungs: steps after which trials are compared; the last is the whole budget.
        tokens_per_step: of the run.
        begun: points of an earlier run of the same search, in their order.

    Raises:
        TrialFailed: a trial failed for the last time; what is finished is kept.
    """
    count, steps = spec.trials or 0, rungs[-1]
    match spec.searcher:
        case "grid" | "random":
            points = space.draw(count, spec.seed) if count else space.grid()
            factor = spec.halving.factor if spec.halving else 1
            return try_points(trials, points, rungs, factor)
        case "optuna":
            return try_with_optuna(trials, space, begun, count, steps, spec.seed)
        case "advisor":
            propose = advised(space, spec.objectives, steps * tokens_per_step)
            return try_with_advisor(trials, begun, count, steps, propose)


def try_points(
    trials: Trials, points: Sequence[Point], rungs: Sequence[int], factor: int
) -> Rounds:
    """Try every point at the first rung, then one in `factor` at every further one.

    Args:
        trials: how they are run.
        points: what is tried.
        rungs: steps after which trials are compared.
        factor: of successive halving.
    """
    rounds: dict[int, dict[Point, Pair]] = {}
    for rung in rungs:
        rounds[rung] = _tune(trials, rung, len(points), points=points)
        if rung != rungs[-1]:
            values = [rounds[rung][point] for point in points]
            points = [points[i] for i in survivors(values, factor)]
    return rounds


def try_children(trials: Trials, children: Sequence[Child], steps: int) -> dict[Child, Pair]:
    """Try children of one size.

    Args:
        trials: how they are run.
        children: what is tried.
        steps: optimizer steps of each.

    Returns:
        The loss of each child, and what it is above the reference's.

    Raises:
        TrialFailed: a trial failed for the last time; what is finished is kept.
    """
    values = _tune(trials, steps, len(children), points=children)
    return {child: values[child] for child in children}


def try_with_optuna(
    trials: Trials, space: Space, begun: Sequence[Point], count: int, steps: int, seed: int
) -> Rounds:
    """Try points that Optuna's multi-objective sampler proposes.

    Args:
        trials: how they are run.
        space: the points of the search.
        begun: points of an earlier run of this search, proposed first.
        count: number of points.
        steps: optimizer steps of a trial.
        seed: of the sampler.
    """
    searcher = optuna_searcher(space, begun, seed)
    return {steps: _tune(trials, steps, max(count, len(begun)), searcher=searcher)}


def optuna_searcher(space: Space, begun: Sequence[Point], seed: int) -> Any:
    """Return Ray Tune's searcher around Optuna's sampler; `begun` is proposed first."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(
        space=_distributions(space),
        metric=[_FIRST, _SECOND],
        mode=["min", "min"],
        points_to_evaluate=[_parameters(point) for point in begun] or None,
        seed=seed,
    )


def try_with_advisor(
    trials: Trials, begun: Sequence[Point], count: int, steps: int, propose: Propose
) -> Rounds:
    """Try `count` points that `propose` returns; `begun` comes first."""
    return {steps: _tune(trials, steps, count, searcher=_advised(begun, propose))}


def advised(space: Space, objectives: Sequence[str], tokens: float) -> Propose:
    """Return a function that proposes the advisor's next point.

    Args:
        space: the points of the search.
        objectives: names of the two objectives.
        tokens: training tokens of a trial.
    """

    def propose(finished: Mapping[Point, Pair], busy: Sequence[Point]) -> Point | None:
        measured = {point: {tokens: values} for point, values in finished.items()}
        return next_point(space, measured, busy, objectives, tokens)

    return propose


def _tune(
    trials: Trials,
    steps: int,
    count: int,
    *,
    points: Sequence[P] | None = None,
    searcher: Any = None,
) -> dict[P, Pair]:
    """Run Ray Tune once. Raises TrialFailed naming the points that failed."""
    from ray import tune

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    space = None if points is None else {"point": tune.grid_search([asdict(p) for p in points])}
    with tempfile.TemporaryDirectory(prefix="perennial-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_trial, bench=trials.bench, seeds=trials.seeds, steps=steps),
                {"CPU": _DRIVER_CPUS},
            ),
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=1 if searcher is None else count,
                max_concurrent_trials=trials.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
                callbacks=[_trial_logger(trials.log, steps, count)],
            ),
        )
        with _terminable():
            results = list(tuner.fit())
    failed = {_point(r.config).name: r.error for r in results if r.error is not None}
    if failed:
        name, error = next(iter(failed.items()))
        line = describe(error)
        raise TrialFailed(f"{len(failed)} of {len(results)} trials failed; {name}: {line}")
    if any(_SECOND not in (r.metrics or {}) for r in results):
        raise KeyboardInterrupt  # Tune ends on one without passing it on
    return {_point(r.config): _values(r.metrics or {}) for r in results}  # type: ignore[misc]


@contextmanager
def _terminable() -> Iterator[None]:
    """End the process with SystemExit on SIGTERM, where Ray would print a trace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _trial(config: dict[str, Any], *, bench: TrialBench[Any], seeds: int, steps: int) -> None:
    from ray import tune

    point = _point(config)
    by_seed = [bench.measure(replace(point, seed=seed), steps).values() for seed in range(seeds)]
    means = [sum(values) / seeds for values in zip(*by_seed, strict=True)]
    tune.report({_FIRST: means[0], _SECOND: means[1]})


def _point(config: Mapping[str, Any]) -> Point | Child:
    fields = config.get("point", config)
    return Child(**fields) if "layers" in fields else Point(**fields)


def _values(metrics: Mapping[str, Any]) -> Pair:
    return float(metrics[_FIRST]), float(metrics[_SECOND])


def _trial_logger(log: Callable[[str], None], steps: int, count: int) -> Any:
    """Return a callback of Tune; a factory, because Tune is loaded late."""
    from ray import tune

    class TrialLogger(tune.Callback):  # type: ignore[misc]
        def __init__(self, log: Callable[[str], None]) -> None:
            self._log = log
            self._done = 0

        def __getstate__(self) -> dict[str, Any]:
            # Tune stores its callbacks to restore a search, which is never done here; what logs
            # holds locks and cannot be stored.
            return {}

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._done += 1
            values = ", ".join(f"{value:.3f}" for value in _values(trial.last_result))
            name = _point(trial.config).name
            self._log(f"trial {self._done} of {count} at {steps:,} steps: {name}: {values}")

    return TrialLogger(log)


def _parameters(point: Point) -> dict[str, Any]:
    return {name: value for name, value in asdict(point).items() if name != "seed"}


def _distributions(space: Space) -> dict[str, Any]:
    """Return the space as Optuna's distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    def axis(values: Choices | Span, log: bool) -> Any:
        if isinstance(values, Choices):
            return CategoricalDistribution(values.values)
        return FloatDistribution(values.low, values.high, log=log)

    return {
        "eta": axis(space.eta, True),
        "replay": axis(space.replay, False),
        "weighting": CategoricalDistribution(space.weighting),
        "anneal": CategoricalDistribution(space.anneal),
    }


def _advised(begun: Sequence[Point], propose: Propose) -> Any:
    """Return a searcher of Tune that calls `propose`; a factory, because Tune is loaded late."""
    from ray.tune.search import Searcher

    class Advised(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._first = list(begun)
            self._busy: dict[str, Point] = {}
            self._finished: dict[Point, Pair] = {}

        def suggest(self, trial_id: str) -> Any:
            busy = list(self._busy.values())
            point = self._first.pop(0) if self._first else propose(self._finished, busy)
            if point is None:
                return Searcher.FINISHED
            self._busy[trial_id] = point
            return asdict(point)

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            point = self._busy.pop(trial_id)
            if result and not error:
                self._finished[point] = _values(result)

        def save(self, checkpoint_path: str) -> None:
            """Write nothing: what was measured is in the ledger."""

        def restore(self, checkpoint_path: str) -> None:
            """Read nothing: what was measured is in the ledger."""

    return Advised()
