"""The pure core of a search, whatever the trials are: front, knee, survivors, law, space."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.config.search import Choices, Point, Span
from perennial.evaluation import pareto_front
from perennial.search.advisor import next_point
from perennial.search.front import knee, resample, scores, sureness, survivors
from perennial.search.law import Seen, fit
from perennial.search.space import Space

VALUES = st.floats(-5, 5).map(lambda x: round(x, 3))
POINTS = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=25)


@given(POINTS, st.floats(0.1, 0.9))
def test_the_knee_is_on_the_front_and_no_point_of_it_scores_less(
    points: list[tuple[float, float]], weight: float
) -> None:
    front = pareto_front(points)
    chosen = knee(points, weight)
    told = scores(points, front, weight)
    assert chosen in front
    assert all(told[chosen] <= told[i] + 1e-9 for i in front)


@given(POINTS, st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_knee_does_not_depend_on_the_units_of_the_objectives(
    points: list[tuple[float, float]], a: float, b: float
) -> None:
    front = pareto_front(points)
    scaled = [(a * x, b * y) for x, y in points]
    told, again = scores(points, front), scores(scaled, front)
    assert [told[i] for i in front] == pytest.approx([again[i] for i in front], abs=1e-6)
    assert told[knee(scaled)] == pytest.approx(told[knee(points)], abs=1e-6)


@given(POINTS)
def test_a_taste_for_what_is_learned_never_learns_less(points: list[tuple[float, float]]) -> None:
    kept, learned = points[knee(points, 0.25)], points[knee(points, 0.75)]
    assert learned[0] <= kept[0]
    assert kept[1] <= learned[1]


@given(POINTS, st.integers(2, 5))
def test_one_trial_in_so_many_survives_and_none_that_a_dropped_one_beats(
    points: list[tuple[float, float]], factor: int
) -> None:
    stay = survivors(points, factor)
    assert len(stay) == math.ceil(len(points) / factor)
    for i in set(range(len(points))) - set(stay):
        for j in stay:
            mine, other = points[i], points[j]
            assert not (mine != other and mine[0] <= other[0] and mine[1] <= other[1])


@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_drawn_points_lie_in_the_space_and_are_the_same_for_a_seed(count: int, seed: int) -> None:
    space = Space(Span(1e-4, 3e-3), Span(0.0, 0.5), ("seen", "recent"))
    points = space.draw(count, seed)
    assert len(points) == count
    assert points == space.draw(count, seed)
    assert all(1e-4 <= p.eta <= 3e-3 and 0 <= p.replay <= 0.5 for p in points)
    assert all(space.holds(point) for point in points)
    assert not space.holds(Point(4e-3, 0.1, "seen"))
    finite = Space(Choices((1e-3, 2e-3)), Choices((0.0, 0.1, 0.5)), ("seen",))
    drawn = finite.draw(count, seed)
    assert len(set(drawn)) == len(drawn) == min(count, 6)


@settings(max_examples=2, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_advisor_tries_every_candidate_once(seed: int) -> None:
    space = Space(Choices((1e-3, 2e-3)), Choices((0.0, 0.1, 0.2, 0.5)), ("seen",))
    dice = np.random.default_rng(seed)
    finished: dict[Point, dict[float, tuple[float, float]]] = {}
    while (point := next_point(space, finished, [], ("adaptation", "forgetting"), 1e5)) is not None:
        assert point not in finished
        finished[point] = {1e5: (float(dice.normal()), float(dice.normal()))}
    assert set(finished) == set(space.grid())


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 4), st.floats(0.1, 2), st.floats(0.1, 3), st.sampled_from([0.25, 0.5, 1.0]))
def test_the_law_finds_the_losses_that_a_law_made(
    level: float, learned: float, lacking: float, decay: float
) -> None:
    def loss(share: float, tokens: float) -> float:
        lack: float = (0.05 / (share + 0.05)) ** decay
        more: float = (1e5 / tokens) ** 0.3
        return level + learned * share * more + lacking * lack

    shares, budgets = (0.0, 0.05, 0.1, 0.25, 0.5, 0.8), (2e4, 1e5)
    seen = [
        Seen(i, 1e-3, share, tokens, loss(share, tokens))
        for i, share in enumerate(shares)
        for tokens in budgets
    ]
    made = fit(seen)
    assert made.law.error < 0.15 * (learned + lacking)
    value, error = made.law.predict(1e-3, 0.15, 1e5)
    assert value == pytest.approx(loss(0.15, 1e5), abs=0.1 * (learned + lacking))
    assert error > 0


def test_the_law_says_of_a_left_out_trial_what_the_others_say() -> None:
    dice = np.random.default_rng(3)
    seen = [
        Seen(i, eta, share, 1e5, 3 + 0.5 * math.log(eta / 1e-3) ** 2 - share + dice.normal(0, 0.01))
        for i, (eta, share) in enumerate((e, s) for e in (5e-4, 1e-3, 2e-3) for s in (0, 0.2, 0.5))
    ]
    made = fit(seen)
    moved = [each if each.trial != 4 else each._replace(loss=99.0) for each in seen]
    assert fit(moved).law.error > made.law.error
    errors = [told - each.loss for told, each in zip(made.held_out, seen, strict=True)]
    assert made.law.error == pytest.approx(float(np.sqrt(np.mean(np.square(errors)))))
    assert made.law.error < 0.1


def test_a_law_of_too_few_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="5 trials, not 4"):
        fit([Seen(i, 1e-3, 0.1 * i, 1e5, 3.0) for i in range(4)])


def _documents(level: float, count: int, seed: int) -> np.ndarray:
    dice = np.random.default_rng(seed)
    tokens = dice.integers(50, 150, count).astype(float)
    hard = np.random.default_rng(7).normal(0, 0.5, count)  # the same documents for every trial
    return np.stack([tokens * (level + hard), tokens], axis=1)


def test_trials_on_the_same_documents_are_told_apart_though_the_documents_differ() -> None:
    trials = [[{"new": _documents(level, 60, 1)}] for level in (3.0, 3.05)]
    samples = resample(
        [[seed | {"old": seed["new"]} for seed in trial] for trial in trials],
        {"old": _documents(2.9, 60, 1)},
        ("adaptation", "forgetting"),
        "new",
        seed=1,
    )
    first, second = sureness(samples)
    assert first.low[0] < 3.0 < first.high[0]
    assert first.high[0] - first.low[0] > 0.1  # more than what they differ by
    assert (first.on_front, second.on_front) == (1.0, 0.0)
    assert first.high[1] - first.low[1] < 1e-6  # forgetting is paired with the start


def test_more_seeds_show_in_the_intervals() -> None:
    apart = [{"new": _documents(level, 40, 1)} for level in (2.0, 4.0)]
    samples = resample([apart], {}, ("adaptation", "adaptation"), "new", seed=1)
    told = sureness(samples)[0]
    assert told.low[0] < 2.5 < 3.5 < told.high[0]


def test_the_bootstrap_is_the_same_for_a_seed() -> None:
    trials = [[{"new": _documents(3.0, 20, 1)}]]
    ask = ("adaptation", "adaptation")
    once, again, other = (resample(trials, {}, ask, "new", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)
