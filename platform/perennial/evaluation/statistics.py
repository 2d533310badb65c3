"""Means over seeds with their 95% intervals, differences paired by seed, and verdicts. Pure.

Runs that differ in their seed alone are a sample of what the settings give. Their mean is known to
within an interval of Student's t distribution; a single run has none. Two settings that share their
seeds share the weights and the order of data that these decide, so their difference is taken seed
by seed: what one seed adds to both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

CONFIDENCE = 0.95
"""Share of intervals, made in this way, that hold the mean."""

Verdict = Literal["holds", "does not hold", "not decided"]


@dataclass(frozen=True)
class Estimate:
    """A mean of so many values.

    half_width: of its 95% interval; None where there is none: one value, or one that is not finite.
    """

    mean: float
    half_width: float | None
    count: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the ends of the 95% interval; None where there is none."""
        if self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width

    def text(self, signed: bool = False) -> str:
        """Return "0.147 ± 0.006", or the mean alone where there is no interval."""
        mean = f"{self.mean:+.3f}" if signed else f"{self.mean:.3f}"
        return mean if self.half_width is None else f"{mean} ± {self.half_width:.3f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values with its 95% interval.

    Raises ValueError where there are no values.
    """
    if not values:
        raise ValueError("there is no mean of no values")
    count = len(values)
    if count == 1 or not all(math.isfinite(value) for value in values):
        return Estimate(math.fsum(values) / count, None, count)
    mean = fmean(values)
    quantile = student_quantile((1 + CONFIDENCE) / 2, count - 1)
    return Estimate(mean, quantile * stdev(values, mean) / math.sqrt(count), count)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """Return the mean of ours minus theirs over the seeds that both have; None without any.

    Args:
        ours: a value by seed.
        theirs: what it is held against.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    return estimate([ours[seed] - theirs[seed] for seed in seeds]) if seeds else None


def judge(
    difference: Estimate | None, at_least: float = -math.inf, at_most: float = math.inf
) -> Verdict:
    """Return whether a claim holds: that the difference lies between two bounds, ends included.

    It holds where the whole interval lies between them, and does not where the whole interval lies
    outside. Else, as for a single seed, it is not decided.

    Args:
        difference: that was measured; None where nothing was.
        at_least: lower bound; for "no more than 0.05 apart" it is -0.05.
        at_most: upper bound.

    Raises:
        ValueError: nothing lies between the bounds.
    """
    if not at_least <= at_most:
        raise ValueError(f"no difference is at least {at_least} and at most {at_most}")
    interval = None if difference is None else difference.interval
    if interval is None:
        return "not decided"
    low, high = interval
    if at_least <= low and high <= at_most:
        return "holds"
    return "does not hold" if high < at_least or low > at_most else "not decided"


def student_quantile(probability: float, degrees: int) -> float:
    """Return the value that Student's t stays below with this probability.

    Args:
        probability: from 0.5 to below 1.
        degrees: of freedom, 1 or more.

    Raises:
        ValueError: an argument is outside of its range.
    """
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(f"no quantile for probability {probability}, {degrees} degrees of freedom")
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _student_probability(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _student_probability(angle: float, degrees: int) -> float:
    """Return the probability that t / sqrt(degrees) is below the tangent of an angle.

    The finite series of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and
    26.7.4; exact for whole degrees of freedom.
    """
    cosine_squared = math.cos(angle) ** 2
    odd = degrees % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for step in range((degrees - odd) // 2):
        total += term
        order = 2 * step + 1 + odd
        term *= cosine_squared * order / (order + 1)
    inside = math.sin(angle) * total
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return (1 + inside) / 2
