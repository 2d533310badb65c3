"""Choose the point to try next, by a law that is fitted to the trials so far. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perennial.config.search import Point
from perennial.evaluation import pareto_front
from perennial.search.front import Pair, scores
from perennial.search.law import LEAST_TRIALS, Fit, Seen, fit
from perennial.search.space import Space


@dataclass(frozen=True)
class Laws:
    """One law for each objective.

    The law of `adaptation` is over the share of the new corpus, which is what replay leaves.

    Attributes:
        fits: in the order of the objectives.
        tokens: training tokens of the trial that is predicted.
    """

    fits: tuple[Fit, Fit]
    objectives: tuple[str, str]
    tokens: float

    def predict(self, point: Point) -> tuple[Pair, Pair]:
        """Return the two objectives and their standard errors, nats per token."""
        (first, first_error), (second, second_error) = (
            fit.law.predict(point.eta, _share(point, name), self.tokens, _kind(point))
            for fit, name in zip(self.fits, self.objectives, strict=True)
        )
        return (first, second), (first_error, second_error)


Finished = Mapping[Point, Mapping[float, Pair]]
"""by point, the objectives by the tokens that the trial had trained; the most are its end"""


def fit_laws(finished: Finished, objectives: Sequence[str], tokens: float) -> Laws:
    """Return laws that are fitted to trials.

    Args:
        finished: the trials.
        objectives: names of the two objectives.
        tokens: training tokens of the trial that will be predicted.

    Raises:
        ValueError: there are fewer than five trials.
    """

    def seen(k: int) -> list[Seen]:
        return [
            Seen(i, point.eta, _share(point, objectives[k]), at, values[k], _kind(point))
            for i, (point, measured) in enumerate(finished.items())
            for at, values in measured.items()
        ]

    return Laws((fit(seen(0)), fit(seen(1))), (objectives[0], objectives[1]), tokens)


def next_point(
    space: Space,
    finished: Finished,
    busy: Sequence[Point],
    objectives: Sequence[str],
    tokens: float,
) -> Point | None:
    """Return the point to try next, or None when every candidate was tried.

    The first five are spread over the space. Then it is the one whose prediction, one standard
    error better than expected, promises the lowest score, in widths of the front so far.

    Args:
        space: the candidates are its grid.
        finished: trials that are done.
        busy: points whose trials are under way.
        objectives: names of the two objectives.
        tokens: training tokens of a whole trial.
    """
    taken = {*finished, *busy}
    candidates = [point for point in space.grid() if point not in taken]
    if not candidates:
        return None
    if len(finished) < LEAST_TRIALS:
        return _farthest(space, candidates, list(taken))
    laws = fit_laws(finished, objectives, tokens)
    ends = [measured[max(measured)] for measured in finished.values()]
    hopes = [_hope(laws, point) for point in candidates]
    both = [*ends, *hopes]
    hoped = scores(both, pareto_front(both))[len(ends) :]
    return candidates[min(range(len(candidates)), key=lambda i: hoped[i])]


def _hope(laws: Laws, point: Point) -> Pair:
    values, errors = laws.predict(point)
    return values[0] - errors[0], values[1] - errors[1]


def _farthest(space: Space, candidates: Sequence[Point], taken: Sequence[Point]) -> Point:
    """Return the candidate that is farthest from all that were taken; the middle first."""
    grid = space.grid()
    places = {point: _place(point, grid) for point in {*candidates, *taken}}
    if not taken:
        return min(candidates, key=lambda p: math.dist(places[p], (0.5, 0.5, 0.0)))
    return max(candidates, key=lambda p: min(math.dist(places[p], places[t]) for t in taken))


def _place(point: Point, grid: Sequence[Point]) -> tuple[float, float, float]:
    """Return a point's place in a cube: its rate by ratio, its share, and its kind."""
    etas = [math.log(other.eta) for other in grid]
    shares = [other.replay for other in grid]
    kinds = sorted({_kind(other) for other in grid})
    return (
        _part(math.log(point.eta), etas),
        _part(point.replay, shares),
        float(kinds.index(_kind(point))) if _kind(point) in kinds else 0.0,
    )


def _part(value: float, values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.5


def _share(point: Point, objective: str) -> float:
    return 1 - point.replay if objective == "adaptation" else point.replay


def _kind(point: Point) -> str:
    return f"{point.weighting} {point.anneal}"
