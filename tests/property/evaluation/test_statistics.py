"""Means over seeds: intervals against published values, differences by seed, verdicts."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.evaluation.statistics import (
    Estimate,
    estimate,
    judge,
    paired_difference,
    student_quantile,
)

LOSSES = st.floats(0, 20)
BY_SEED = st.dictionaries(st.integers(0, 9), LOSSES, min_size=1)
ENDS = st.tuples(st.floats(-3, 3), st.floats(0, 3))


@pytest.mark.parametrize(
    ("degrees", "at_95", "at_975", "at_995"),
    [
        (1, 6.314, 12.706, 63.657),
        (2, 2.920, 4.303, 9.925),
        (3, 2.353, 3.182, 5.841),
        (4, 2.132, 2.776, 4.604),
        (9, 1.833, 2.262, 3.250),
        (30, 1.697, 2.042, 2.750),
        (120, 1.658, 1.980, 2.617),
    ],
)
def test_quantiles_are_those_of_the_published_table(
    degrees: int, at_95: float, at_975: float, at_995: float
) -> None:
    found = [student_quantile(p, degrees) for p in (0.95, 0.975, 0.995)]
    assert found == pytest.approx([at_95, at_975, at_995], abs=5.1e-4)


@given(st.floats(0.5, 0.999))
def test_quantiles_have_their_closed_forms(probability: float) -> None:
    assert student_quantile(probability, 1) == pytest.approx(
        math.tan(math.pi * (probability - 0.5)), rel=1e-9, abs=1e-12
    )
    alpha = 4 * probability * (1 - probability)
    assert student_quantile(probability, 2) == pytest.approx(
        2 * (2 * probability - 1) / math.sqrt(2 * alpha), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("degrees", [10_000, 10_001])
def test_quantiles_end_as_the_normal_ones(degrees: int) -> None:
    normal = NormalDist().inv_cdf(0.975)
    assert student_quantile(0.975, degrees) == pytest.approx(normal, rel=3e-4)


@pytest.mark.parametrize(("probability", "degrees"), [(0.4, 3), (1.0, 3), (0.975, 0)])
def test_what_has_no_quantile_is_refused(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        student_quantile(probability, degrees)


def test_a_mean_has_its_interval_from_two_values_on() -> None:
    # Worked by hand: mean 5, standard deviation 2.1380899, quantile of 7 degrees 2.3646243.
    known = estimate([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert (known.mean, known.count) == (5.0, 8)
    assert known.half_width == pytest.approx(1.787487, abs=1e-6)
    assert known.text() == "5.000 ± 1.787"
    assert estimate([1.0, 3.0]).half_width == pytest.approx(12.7062, abs=1e-4)
    assert estimate([0.1, 0.1, 0.1]).half_width == pytest.approx(0.0, abs=1e-12)
    one = estimate([0.25])
    assert (one, one.interval, one.text(signed=True)) == (Estimate(0.25, None, 1), None, "+0.250")
    diverged = estimate([1.0, math.inf])
    assert (diverged.mean, diverged.half_width) == (math.inf, None)
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_intervals_hold_the_mean_as_often_as_they_promise() -> None:
    drawn = random.Random(0)
    samples = [[drawn.gauss(3.0, 0.5) for _ in range(3)] for _ in range(4000)]
    ends = [estimate(sample).interval for sample in samples]
    held = sum(end is not None and end[0] <= 3.0 <= end[1] for end in ends) / len(ends)
    assert held == pytest.approx(0.95, abs=0.01)


@given(st.lists(LOSSES, min_size=2, max_size=8), st.floats(-5, 5))
def test_a_shift_of_all_values_moves_the_mean_and_leaves_the_width(
    values: list[float], shift: float
) -> None:
    before, after = estimate(values), estimate([value + shift for value in values])
    assert after.mean == pytest.approx(before.mean + shift, abs=1e-9)
    assert after.half_width == pytest.approx(before.half_width, abs=1e-6)


@given(BY_SEED, st.floats(-3, 3))
def test_what_a_seed_adds_to_both_sides_cancels(theirs: dict[int, float], lead: float) -> None:
    ours = {seed: value + lead for seed, value in theirs.items()} | {99: 1.0}
    difference = paired_difference(ours, theirs)
    assert difference is not None
    assert difference.mean == pytest.approx(lead, abs=1e-9)
    assert difference.count == len(theirs)
    assert (difference.half_width is None) == (len(theirs) == 1)
    assert difference.half_width is None or difference.half_width == pytest.approx(0.0, abs=1e-6)
    assert paired_difference({1: 2.0}, {2: 2.0}) is None


def test_pairs_are_those_of_a_seed_and_not_of_a_place() -> None:
    ours, theirs = {3: 1.0, 1: 5.0}, {1: 4.0, 2: 9.0, 3: 0.5}
    assert paired_difference(ours, theirs) == estimate([1.0, 0.5])


@given(ENDS, ENDS)
def test_a_claim_is_decided_by_the_whole_interval(
    measured: tuple[float, float], bounds: tuple[float, float]
) -> None:
    difference = Estimate(measured[0], measured[1], 5)
    low, high = measured[0] - measured[1], measured[0] + measured[1]
    at_least, at_most = bounds[0], bounds[0] + bounds[1]
    verdict = judge(difference, at_least, at_most)
    if verdict == "holds":
        assert at_least <= low <= high <= at_most
    elif verdict == "does not hold":
        assert high < at_least or low > at_most
    else:
        assert low < at_least <= high or low <= at_most < high
    # A claim that asks for less holds as well.
    assert verdict != "holds" or judge(difference, at_most=at_most) == "holds"


def test_no_verdict_comes_from_one_seed_or_from_none() -> None:
    difference = Estimate(0.147, 0.006, 5)
    assert judge(difference, at_most=0.2) == "holds"
    assert judge(difference, at_least=-0.05, at_most=0.05) == "does not hold"
    assert judge(difference, at_most=0.15) == "not decided"
    assert judge(difference) == "holds", "without a bound nothing is claimed"
    for undecided in (Estimate(0.147, None, 1), None):
        assert judge(undecided, at_most=0.2) == "not decided"
    with pytest.raises(ValueError, match="no difference is"):
        judge(difference, at_least=1.0, at_most=0.0)
