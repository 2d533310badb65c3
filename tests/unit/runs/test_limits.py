"""Limits of a run that nobody watches: counted by the ledger's times, and lifted by the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec
from perennial.runs.actions import Action, Order, Outside, next_action, unapproved
from perennial.runs.stage_planner import order_of
from perennial.runs.state import RunState
from perennial.runs.trunk.training_times import note_training, time_trained
from perennial.runs.unattended.limits import LimitReached, gpu_hours, reached_limit
from tests.support.event_factory import WALK, event_of, walk
from tests.support.tiny_run import tiny_run

LAST_DAY = datetime(2026, 1, 31, tzinfo=UTC)


def _spec(**limits: Any) -> RunSpec:
    document = tiny_run(Path("/nowhere"))
    document["training"] |= {"workers": 2, "gpus_per_worker": 1}
    document["limits"] = limits
    return RunSpec.model_validate(document)


def _at(state: RunState, corpus: str, kind: str, hours: float) -> None:
    """An event so many hours after the beginning of the last day of January."""
    at = (LAST_DAY + timedelta(hours=hours)).isoformat()
    changes: dict[str, Any] = {"at": at} | ({"gpus": 2.0} if kind == "started" else {})
    state.apply(event_of(kind, state, corpus).model_copy(update=changes))


def _stage(state: RunState, corpus: str, begun: float, ended: float) -> None:
    for kind in WALK[:3]:
        _at(state, corpus, kind, begun)
    for kind, hours in zip(WALK[3:], [begun, *[ended] * 4], strict=True):
        _at(state, corpus, kind, hours)


def _hours(state: RunState, since: float, until: float) -> float:
    ends = (LAST_DAY + timedelta(hours=hours) for hours in (since, until))
    return gpu_hours(state, *ends)


def test_as_many_stages_begin_in_a_day_as_the_limit_says_and_the_next_day_again() -> None:
    spec, state = _spec(stages_per_day=2), RunState()
    _stage(state, "a", -1, 1)  # begun the day before
    _stage(state, "b", 2, 3)
    noon, later = ((LAST_DAY + timedelta(hours=hours)).isoformat() for hours in (12, 24))
    assert reached_limit(spec, state, noon) is None
    _stage(state, "c", 4, 5)
    reached = reached_limit(spec, state, noon)
    assert reached == LimitReached("2 of 2 stages of 2026-01-31 have begun", later)
    assert reached_limit(spec, state, later) is None


def test_a_stage_that_left_the_trunk_counts_too() -> None:
    spec, state = _spec(stages_per_day=1), RunState()
    for kind in WALK[:3]:
        _at(state, "a", kind, 1)
    _at(state, "a", "started", 1)
    _at(state, "a", "failed", 2)
    _at(state, "a", "refused", 3)
    assert state.abandoned
    assert reached_limit(spec, state, (LAST_DAY + timedelta(hours=4)).isoformat()) is not None
    assert _hours(state, 0, 10) == pytest.approx(2.0)  # two GPUs until it failed


def test_gpu_hours_are_those_of_the_month_and_not_of_waiting() -> None:
    state = RunState()
    _stage(state, "a", 23, 25)
    assert _hours(state, 0, 24) == pytest.approx(2.0)  # an hour of two GPUs
    assert _hours(state, 24, 48) == pytest.approx(2.0)
    for kind in WALK[:3]:
        _at(state, "b", kind, 26)
    _at(state, "b", "started", 26)
    assert _hours(state, 24, 27) == pytest.approx(4.0)  # it goes on
    _at(state, "b", "failed", 27)
    assert _hours(state, 24, 40) == pytest.approx(4.0)
    _at(state, "b", "retried", 41)
    _at(state, "b", "trained", 42)
    assert _hours(state, 24, 50) == pytest.approx(6.0)


def test_over_its_gpu_hours_a_run_waits_for_the_next_month() -> None:
    spec, state = _spec(gpu_hours_per_month=3), RunState()
    _stage(state, "a", 1, 3)
    (reached,) = [reached_limit(spec, state, (LAST_DAY + timedelta(hours=4)).isoformat())]
    assert reached is not None
    assert reached.reason == "4.00 of 3 GPU-hours of 2026-01 are used"
    assert datetime.fromisoformat(reached.until) == datetime(2026, 2, 1, tzinfo=UTC)
    assert reached_limit(spec, state, reached.until) is None


def test_gpu_hours_of_a_run_without_gpus_are_refused() -> None:
    document = tiny_run(Path("/nowhere")) | {"limits": {"gpu_hours_per_month": 1}}
    with pytest.raises(ValueError, match="for a run that trains on GPUs"):
        RunSpec.model_validate(document)


def test_a_time_is_noted_once() -> None:
    times: list[str] = []
    for at, trains in (("1", True), ("2", True), ("3", False), ("4", False), ("5", True)):
        note_training(times, f"2026-01-0{at}T00:00:00+00:00", trains=trains)
    assert [time[8:10] for time in times] == ["01", "03", "05"]
    begin, end = (datetime(2026, 1, day, tzinfo=UTC) for day in (2, 7))
    assert time_trained(times, begin, end) == timedelta(days=3)


def test_a_limit_lets_no_stage_begin_and_everything_else_go_on() -> None:
    state, limit = RunState(), LimitReached("enough for today", "2026-02-01T00:00:00+00:00")
    walk(state, "a", *WALK[:3])
    walk(state, "b", "landed")
    outside = Outside(now="2026-01-31T00:00:00+00:00", limit=limit)
    assert next_action(state, outside) == Action("ingest", "b")
    walk(state, "b", "ingesting", "ready")
    assert next_action(state, outside) == Action("wait", "a", limit.until, reason=limit.reason)
    assert next_action(state, Outside()) == Action("start", "a")
    walk(state, "a", "started")
    assert next_action(state, outside) == Action("train", "a")


def test_under_manual_approval_each_stage_waits_for_a_user() -> None:
    document = tiny_run(Path("/nowhere"))
    document["stages"] |= {"approval": "manual", "batch_arrivals": {}}
    order, state = order_of(RunSpec.model_validate(document)), RunState()
    for name in "abc":
        walk(state, name, *WALK[:3])
    assert unapproved(state, order) == ["a", "b", "c"]
    assert next_action(state, Outside(), order) is None
    for name in "bc":
        state.apply(event_of("accepted", state, name))
    assert state.accepted == {}, "no gate was overruled"
    assert unapproved(state, order) == ["a"]
    assert next_action(state, Outside(), order) == Action("start", "b", joined=("c",))
    state.apply(event_of("accepted", state, "a"))
    assert next_action(state, Outside(), order) == Action("start", "a", joined=("b", "c"))
    assert next_action(state, Outside(), Order()) == Action("start", "a")
    state.validate()
