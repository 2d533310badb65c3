"""Which corpora a budget draws, and what they tell of all of them."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from statistics import fmean, pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.evaluation.budget import draw_corpora, mean_forgetting
from perennial.evaluation.loss import Change

POOL = [f"c{number:02d}" for number in range(10)]


@pytest.mark.parametrize("count", [10, 11, 1000])
def test_a_budget_for_all_draws_all(count: int) -> None:
    assert draw_corpora(POOL, {}, count) == tuple(POOL)
    assert draw_corpora([], {}, count) == ()


def test_a_draw_takes_the_one_of_each_part_that_was_not_measured_for_longest() -> None:
    assert draw_corpora(POOL, {}, 3) == ("c00", "c03", "c06")
    measured = {name: 9 for name in POOL} | {"c01": 4, "c02": 4, "c05": 3}
    assert draw_corpora(POOL, measured, 3) == ("c01", "c05", "c06")


@given(count=st.integers(1, 12), at_once=st.integers(1, 3), stages=st.integers(1, 60))
def test_every_corpus_is_drawn_again_within_the_bound(
    count: int, at_once: int, stages: int
) -> None:
    """However the pool grows: of P corpora, within 2 P / N + 1 draws of N."""
    pool: list[str] = []
    draws: dict[str, list[int]] = {}
    for stage in range(stages):
        drawn = draw_corpora(pool, {name: its[-1] for name, its in draws.items()}, count)
        assert len(drawn) == len({*drawn}) == min(count, len(pool))
        for name in drawn:
            waited = stage - draws[name][-1]
            assert waited <= 2 * len(pool) / count + 1
            draws[name].append(stage)
        new = [f"{stage}-{number}" for number in range(at_once)]
        pool += new
        draws |= {name: [stage] for name in new}
    for its in draws.values():
        assert stages - its[-1] <= 2 * len(pool) / count + 1
        assert all(first < second for first, second in pairwise(its))


def test_the_mean_of_all_is_plain_and_its_error_that_of_the_documents() -> None:
    changes = [Change(0.1, 0.03), Change(0.3, 0.04)]
    for mean in (mean_forgetting(changes, [], 0), mean_forgetting([], changes, 2)):
        assert mean is not None
        assert mean.nats_per_token == pytest.approx(0.2)
        assert (mean.measured, mean.of) == (2, 2)
        assert mean.stderr == pytest.approx(0.025)
        assert mean.describe() == "+0.200 ± 0.025"


def test_corpora_that_are_always_measured_stand_for_themselves_alone() -> None:
    mean = mean_forgetting([Change(1.0, 0.0)], [Change(0.1, 0.0), Change(0.3, 0.0)], 9)
    assert mean is not None
    assert mean.nats_per_token == pytest.approx((1.0 + 9 * 0.2) / 10)
    assert (mean.measured, mean.of) == (3, 10)
    assert mean.describe() == f"+0.280 ± {mean.stderr:.3f}, over 3 of 10"


def test_mean_and_variance_are_right_on_average_over_all_draws() -> None:
    """Of every draw of three of seven corpora, whose losses are known exactly."""
    nats = [0.0, 0.1, 0.15, 0.4, -0.2, 0.05, 0.9]
    means = [
        mean_forgetting([], [Change(value, 0.0) for value in drawn], len(nats))
        for drawn in combinations(nats, 3)
    ]
    estimates = [mean.nats_per_token for mean in means if mean is not None]
    variances = [mean.stderr**2 for mean in means if mean is not None and mean.stderr is not None]
    assert len(estimates) == len(variances) == math.comb(7, 3)
    assert fmean(estimates) == pytest.approx(fmean(nats))
    assert fmean(variances) == pytest.approx(pvariance(estimates))


def test_an_error_that_cannot_be_known_is_none() -> None:
    alone = mean_forgetting([], [Change(0.2, 0.1)], 5)
    assert alone is not None
    assert alone.stderr is None
    assert alone.describe() == "+0.200, over 1 of 5"
    no_error = mean_forgetting([Change(0.2, None)], [], 0)
    assert no_error is not None
    assert no_error.stderr is None


def test_without_errors_of_documents_the_error_is_rather_too_large() -> None:
    drawn = [Change(0.1, None), Change(0.3, None), Change(0.2, None)]
    without = mean_forgetting([], drawn, 4)
    exact = mean_forgetting([], [Change(change.nats_per_token, 0.0) for change in drawn], 4)
    assert without is not None
    assert exact is not None
    assert without.stderr is not None
    assert exact.stderr is not None
    assert without.stderr > exact.stderr


def test_nothing_drawn_of_what_can_be_forgotten_is_no_mean() -> None:
    assert mean_forgetting([], [], 0) is None
    assert mean_forgetting([Change(0.1, 0.1)], [], 3) is None
