"""Where a step's time goes."""

from __future__ import annotations

import pytest

from perennial.training.engine.step_timer import PARTS, Meter, shares


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def test_every_moment_belongs_to_exactly_one_part() -> None:
    clock = _Clock()
    meter = Meter(clock)
    clock.pass_(1)
    meter.to("backward")
    clock.pass_(2)
    outer = meter.to("communication")
    clock.pass_(4)
    assert meter.to(outer) == "communication"
    clock.pass_(8)
    lap = meter.lap()
    assert lap == dict.fromkeys(PARTS, 0.0) | {"other": 1, "backward": 10, "communication": 4}


def test_a_lap_begins_where_the_last_one_ended_and_keeps_the_part() -> None:
    clock = _Clock()
    meter = Meter(clock)
    meter.to("data")
    clock.pass_(3)
    meter.lap()
    clock.pass_(5)
    assert meter.lap() == dict.fromkeys(PARTS, 0.0) | {"data": 5}


def test_shares_are_of_the_whole_time_of_all_laps() -> None:
    told = shares([{"data": 1.0, "forward": 3.0}, {"backward": 4.0}])
    assert told["data"] == pytest.approx(1 / 8)
    assert sum(told.values()) == pytest.approx(1)
    assert set(told) == set(PARTS)
    assert shares([]) == {}
