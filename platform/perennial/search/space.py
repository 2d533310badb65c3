"""The space of a search: its points, in a grid or drawn at random. Pure."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import product

from perennial.config.search import Choices, Point, Span, TuningSpec

_LEVELS = 9
"""number of values of a range that a search by candidates tries"""


@dataclass(frozen=True)
class Space:
    """The values that may be combined. Rates are spaced by ratio, shares by difference."""

    eta: Choices | Span
    replay: Choices | Span
    weighting: tuple[str, ...]
    anneal: tuple[str, ...] = ("",)

    def grid(self) -> list[Point]:
        """Return every combination; of a range, evenly spaced values."""
        axes = (levels(self.eta, log=True), levels(self.replay), self.weighting, self.anneal)
        return [Point(*values) for values in product(*axes)]

    def holds(self, point: Point) -> bool:
        """Return True for a point of this space."""
        return (
            _holds(self.eta, point.eta)
            and _holds(self.replay, point.replay)
            and point.weighting in self.weighting
            and point.anneal in self.anneal
        )

    def draw(self, count: int, seed: int) -> list[Point]:
        """Return different points, fewer than `count` only where there are no more.

        Args:
            count: number of points.
            seed: the same points are drawn for the same seed.
        """
        dice = random.Random(seed)
        finite = isinstance(self.eta, Choices) and isinstance(self.replay, Choices)
        if finite:
            grid = self.grid()
            return dice.sample(grid, min(count, len(grid)))
        return [
            Point(
                _drawn(self.eta, dice, log=True),
                _drawn(self.replay, dice),
                dice.choice(self.weighting),
                dice.choice(self.anneal),
            )
            for _ in range(count)
        ]


def space_of(spec: TuningSpec, here: Point) -> Space:
    """Return the space of a tuning file.

    Args:
        spec: the tuning file.
        here: the point that the run file is; it gives what the search does not vary.
    """
    return Space(
        eta=spec.rate or Choices((here.eta,)),
        replay=spec.replay or Choices((here.replay,)),
        weighting=spec.weighting or (here.weighting,),
        anneal=tuple(map(str, spec.anneal)) if spec.anneal else (here.anneal,),
    )


def levels(axis: Choices | Span, *, log: bool = False) -> tuple[float, ...]:
    """Return the values of an axis; of a range, nine evenly spaced ones with both ends.

    Args:
        axis: values or a range.
        log: space a range by ratio, rather than by difference.
    """
    if isinstance(axis, Choices):
        return axis.values
    inner = [_between(axis, i / (_LEVELS - 1), log=log) for i in range(1, _LEVELS - 1)]
    return (axis.low, *inner, axis.high)


def _holds(axis: Choices | Span, value: float) -> bool:
    return value in axis.values if isinstance(axis, Choices) else axis.low <= value <= axis.high


def _drawn(axis: Choices | Span, dice: random.Random, *, log: bool = False) -> float:
    if isinstance(axis, Choices):
        return dice.choice(axis.values)
    return _between(axis, dice.random(), log=log)


def _between(span: Span, part: float, *, log: bool) -> float:
    """Return the value at a part of a range, to four digits: names and run files hold it."""
    if log:
        value = math.exp(math.log(span.low) + part * (math.log(span.high) - math.log(span.low)))
    else:
        value = span.low + part * (span.high - span.low)
    return min(max(float(f"{value:.4g}"), span.low), span.high)
