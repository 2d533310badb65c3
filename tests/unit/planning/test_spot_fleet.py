"""Goodput on machines that are taken away, checked where the answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.simulate_chaos import read_chaos
from perennial.planning.spot_fleet import Costs, Fleet, search, simulate, young_interval

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


def test_shares_never_exceed_the_wall_clock() -> None:
    told = simulate(Fleet(20, 0, 300), Costs(10, 60), (2, 4), 300, DAY, SEEDS)
    parts = told.lost + told.restarting + told.waiting + told.checkpointing
    assert 0 <= told.mean <= 1 - parts + 1e-9


def test_the_report_of_the_chaos_test_is_one_that_the_comparison_reads() -> None:
    run = read_chaos((RESULTS / "chaos.md").read_text("utf-8"))
    assert 0 < run.goodput < 1
    assert run.kills >= 4
    assert run.interval_steps < run.steps
    assert run.kills_per_hour * 2 * run.seconds == pytest.approx(3600 * run.kills)
