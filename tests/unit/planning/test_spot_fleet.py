"""Goodput on machines that are taken away, checked where the answer is known."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulate_chaos import read_chaos
from perennial.planning.spot_fleet import Costs, Fleet, search, simulate, young_interval
from perennial.training.growth import PATIENCE

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
DAY = 86_400.0
SEEDS = range(12)


def test_without_preemptions_only_the_first_start_and_the_checkpoints_cost() -> None:
    told = simulate(Fleet(0, 0, 60), Costs(10, 100), (4, 4), 90, 10_100, [0])
    assert told.mean == pytest.approx(0.9 * 10_000 / 10_100, rel=2e-3)
    assert (told.lost, told.waiting, told.preemptions) == (0, 0, 0)


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    fleet, costs = Fleet(1, 0, 60), Costs(5, 30)
    first, again, other = (simulate(fleet, costs, (2, 4), 300, DAY, [s]) for s in (1, 1, 2))
    assert first == again != other


def test_preemptions_come_at_the_fleets_rate() -> None:
    told = simulate(Fleet(0.5, 0, 0.001), Costs(1, 1), (8, 8), 300, 10 * DAY, SEEDS)
    assert told.preemptions == pytest.approx(0.5 * 8 * 240, rel=0.05)


def test_the_best_interval_is_near_youngs_and_so_is_its_goodput() -> None:
    fleet, costs = Fleet(0.25, 0, 0.001), Costs(20, 60)  # 4 workers: a failure an hour
    young = young_interval(fleet, costs, 4)
    assert young == pytest.approx((2 * 20 * 3600) ** 0.5)
    found = search(fleet, costs, 4, 1.0, 4 * DAY, SEEDS)
    assert young / 2 <= found.best_interval <= young * 2
    # First order: a checkpoint an interval; half an interval and a restart a failure.
    expected = 1 - 20 / (young + 20) - (young / 2 + 60) / 3600
    at_young = simulate(fleet, costs, (4, 4), young, 4 * DAY, SEEDS)
    assert at_young.mean == pytest.approx(expected, abs=0.015)


def test_a_notice_longer_than_a_checkpoint_loses_nothing() -> None:
    warned = simulate(Fleet(1, 30, 60), Costs(10, 30), (1, 4), 600, DAY, SEEDS)
    surprised = simulate(Fleet(1, 5, 60), Costs(10, 30), (1, 4), 600, DAY, SEEDS)
    assert warned.lost == 0 < surprised.lost
    assert warned.mean > surprised.mean


def test_a_group_that_may_shrink_does_not_wait() -> None:
    fleet, costs = Fleet(0.2, 120, 3600), Costs(10, 60)
    fixed = simulate(fleet, costs, (4, 4), 900, DAY, SEEDS)
    elastic = simulate(fleet, costs, (1, 4), 900, DAY, SEEDS)
    assert elastic.mean > fixed.mean
    assert elastic.waiting < 0.01 < fixed.waiting
    assert search(fleet, costs, 4, 1.0, DAY, SEEDS).best_fewest < 4


def test_nothing_costs_nothing() -> None:
    """An idle group during a notice was in no share once: goodput was 0.969 here."""
    told = simulate(Fleet(2, 600, 0), Costs(0, 0), (1, 4), 300, DAY, SEEDS)
    assert told.preemptions > 100
    assert told.mean == pytest.approx(1, abs=1e-9)


def test_goodput_is_dalys_within_three_sigma() -> None:
    """J. T. Daly, Future Generation Computer Systems 22(3), 2006, equation 20, for one machine.

    Wall clock a unit of work, with failures of mean distance M also during restarts R and
    checkpoints C: M e^(R/M) (e^((T + C)/M) - 1) / T.
    """
    interval, save, restart, mean = 900.0, 30.0, 120.0, 3600.0
    fleet, costs = Fleet(3600 / mean, 0, 0), Costs(save, restart)
    told = simulate(fleet, costs, (1, 1), interval, 10 * DAY, range(40))
    factor = mean * math.exp(restart / mean) * (math.exp((interval + save) / mean) - 1) / interval
    assert abs(told.mean - 1 / factor) < 3 * told.spread / math.sqrt(40)


@given(
    rate=st.floats(0, 30),
    notice=st.sampled_from([0.0, 5.0, 30.0, 600.0]),
    replacement=st.floats(0, 2000),
    save=st.floats(0, 60),
    restart=st.floats(0, 300),
    fewest=st.integers(1, 6),
    interval=st.floats(1, 5000),
    horizon=st.floats(10, 30_000),
    patience=st.sampled_from([0, 0.25, 1, math.inf]),
)
def test_shares_add_up_to_the_wall_clock(
    rate: float,
    notice: float,
    replacement: float,
    save: float,
    restart: float,
    fewest: int,
    interval: float,
    horizon: float,
    patience: float,
) -> None:
    fleet, costs = Fleet(rate, notice, replacement), Costs(save, restart)
    told = simulate(fleet, costs, (fewest, 6), interval, horizon, [1], patience)
    parts = (told.goodput, told.lost, told.restarting, told.waiting, told.checkpointing)
    assert min(*parts, told.missing) >= 0
    assert sum(parts) + told.missing == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    "fleets",
    [
        [Fleet(0.5, notice, 300) for notice in (0, 5, 20, 600)],
        [Fleet(rate, 0, 300) for rate in (4, 1, 0.25, 0)],
        [Fleet(0.5, 0, replacement) for replacement in (7200, 900, 60, 0)],
    ],
    ids=["notice", "rate", "replacement"],
)
def test_a_better_fleet_is_never_worse(fleets: list[Fleet]) -> None:
    means = [simulate(fleet, Costs(20, 60), (1, 4), 600, DAY, SEEDS) for fleet in fleets]
    for worse, better in pairwise(means):
        assert better.mean >= worse.mean - 3 * (better.spread + worse.spread) / math.sqrt(12)
    assert means[-1].mean > means[0].mean


@pytest.mark.parametrize("costs", [[(60, 60), (20, 60), (0, 60)], [(20, 600), (20, 60), (20, 0)]])
def test_a_lower_cost_is_never_worse(costs: list[tuple[float, float]]) -> None:
    means = [simulate(Fleet(0.5, 0, 300), Costs(*c), (1, 4), 600, DAY, SEEDS).mean for c in costs]
    assert means == sorted(means)


def test_machines_that_return_one_by_one_are_taken_in_together() -> None:
    """276 machines, each preempted once in 20 hours: a growth for each costs a third."""
    fleet, costs = Fleet(1 / 20, 120, 600), Costs(10, 120)
    waits, hastens = (
        simulate(fleet, costs, (200, 276), 3970, DAY, range(3), p) for p in (PATIENCE, 0)
    )
    assert hastens.mean < 0.4 < 0.55 < waits.mean
    assert waits.restarts < 0.7 * hastens.restarts


def test_a_quiet_fleet_grows() -> None:
    """A lost machine is taken in again soon after it is back."""
    told = simulate(Fleet(0.01, 120, 600), Costs(10, 30), (1, 4), 900, 10 * DAY, SEEDS)
    never = simulate(Fleet(0.01, 120, 600), Costs(10, 30), (1, 4), 900, 10 * DAY, SEEDS, math.inf)
    assert told.missing < 0.01 < 0.1 < never.missing


def test_the_report_of_the_chaos_test_is_one_that_the_comparison_reads() -> None:
    run = read_chaos((RESULTS / "chaos.md").read_text("utf-8"))
    assert 0 < run.goodput < 1
    assert run.kills >= 4
    assert run.interval_steps < run.steps
    assert run.kills_per_hour * 2 * run.seconds == pytest.approx(3600 * run.kills)
