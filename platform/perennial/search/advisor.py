"""What to try next: a law of the trials so far says which point may improve the front. Pure."""

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
    """A law for each objective; the new corpus's share is what replay leaves.

    tokens: those of a trial that is predicted.
    """

    fits: tuple[Fit, Fit]
    objectives: tuple[str, str]
    tokens: float

    def predict(self, point: Point) -> tuple[Pair, Pair]:
        """The two objectives and their standard errors, nats per token."""
        told = [
            each.law.predict(point.eta, _share(point, name), self.tokens, _kind(point))
            for each, name in zip(self.fits, self.objectives, strict=True)
        ]
        return (told[0][0], told[1][0]), (told[0][1], told[1][1])


Finished = Mapping[Point, Mapping[float, Pair]]
"""By point, the objectives by the tokens that the trial had trained; the most are its end."""


def fit_laws(finished: Finished, objectives: Sequence[str], tokens: float) -> Laws:
    """Laws of the trials that there are; ValueError for fewer than five."""

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
    """The point to try next, or None when every candidate was tried.

    The first five are spread over the space. Then it is the one whose prediction, one standard
    error better than expected, promises the lowest score, in widths of the front so far.
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
    told = scores(both, pareto_front(both))[len(ends) :]
    return candidates[min(range(len(candidates)), key=lambda i: told[i])]


def _hope(laws: Laws, point: Point) -> Pair:
    values, errors = laws.predict(point)
    return values[0] - errors[0], values[1] - errors[1]


def _farthest(space: Space, candidates: Sequence[Point], taken: Sequence[Point]) -> Point:
    """The candidate that lies farthest from all that were taken; the middle first."""
    grid = space.grid()
    places = {point: _place(point, grid) for point in {*candidates, *taken}}
    if not taken:
        return min(candidates, key=lambda p: math.dist(places[p], (0.5, 0.5, 0.0)))
    return max(candidates, key=lambda p: min(math.dist(places[p], places[t]) for t in taken))


def _place(point: Point, grid: Sequence[Point]) -> tuple[float, float, float]:
    """A point's place in a cube: its rate by ratio, its share, and one corner for each kind."""
    etas = [math.log(each.eta) for each in grid]
    shares = [each.replay for each in grid]
    kinds = sorted({_kind(each) for each in grid})
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
