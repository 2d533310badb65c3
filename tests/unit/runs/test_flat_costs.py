"""What a trunk of many stages costs: counted, and the same as what each stage by itself gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from perennial.api.status import read_status
from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.mixture import TrunkUse
from perennial.runs import snapshots
from perennial.runs.state import RunState
from perennial.runs.summary import matrix, tokens_by_source, trunk_rates
from perennial.schedules import from_dict
from perennial.store.local import LocalStore
from tests.support.event_factory import event_of, walk
from tests.support.long_run import LongRun, count_calls, long_spec, stage_events


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return long_spec(tmp_path)


def _grow(spec: RunSpec, stages: int, cells: int | None = 0, **settings: Any) -> RunState:
    state = RunState()
    for _ in range(stages):
        for event in stage_events(spec, state, cells, **settings):
            state.apply(event)
    return state


def test_running_sums_are_what_all_stages_give(spec: RunSpec) -> None:
    state = RunState()
    for number in range(12):
        skipped = (number * 12 + 3,) if number % 3 == 1 else ()
        for event in stage_events(spec, state, 0, skipped):
            state.apply(event)
            assert state.use == TrunkUse.of(state.history)
        seen: Counter[str] = Counter()
        for stage in state.stages:
            assert state.seen(stage, stage.first_step) == dict(seen)
            assert state.use_before(stage) == TrunkUse.of(state.history_of(stage))
            seen.update(state.trained(stage, stage.last_step))
    other = {stage.folder: (stage.first_step + 1,) for stage in state.stages}
    right: Counter[str] = Counter()
    for stage in state.stages:
        assert state.seen(stage, stage.first_step, other) == dict(right)
        right.update(state.trained(stage, stage.last_step, other))


def test_running_sums_forget_a_stage_that_left_the_trunk(spec: RunSpec) -> None:
    state = _grow(spec, 3)
    walk(state, "z", "landed", "ingesting", "ready", "started", "trained")
    assert state.use == TrunkUse.of(state.history)
    walk(state, "z", "evaluating", "evaluated", "gated")
    state.apply(event_of("refused", state, "z"))
    assert len(state.abandoned) == 1
    assert state.use == TrunkUse.of(state.history)
    assert state.use_before(state.abandoned[0]) == TrunkUse.of(state.history)


def test_a_stage_costs_its_own_sources_to_plan_and_to_record(spec: RunSpec) -> None:
    """Not those of all earlier stages: four times the stages cost four times as much at most."""
    calls = {}
    for stages in (50, 200):
        state = _grow(spec, stages)

        def next_stage(state: RunState = state) -> None:
            for event in stage_events(spec, state, 0):
                state.apply(event)
            state.seen(state.stages[-1], state.stages[-1].first_step)

        calls[stages] = count_calls(next_stage)
    assert calls[200] <= 4 * calls[50]


def test_the_last_rows_of_the_matrix_are_those_of_the_whole(spec: RunSpec) -> None:
    state = _grow(spec, 9, None)
    whole, tail = matrix(state), matrix(state, last=3)
    assert replace(whole, since=6).to_dict() == tail.to_dict()
    assert [len(losses) for _, losses in tail.stages] == [1, 1, 1, 1, 1, 1, 7, 8, 9]
    everything = tokens_by_source(state, 128)
    assert tokens_by_source(state, 128, 3) == dict(list(everything.items())[-3:])


def test_rates_are_evenly_spaced_over_the_trunk_and_end_with_its_last_step(spec: RunSpec) -> None:
    state = _grow(spec, 9)
    right = [
        from_dict(stage.schedule).eta(step)
        for stage in state.stages
        for step in range(stage.first_step, stage.last_step)
    ]
    assert trunk_rates(state.stages) == right  # of 108 steps, each
    assert trunk_rates([]) == []


def test_a_tail_costs_the_same_requests_whatever_came_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the interpreter no more than in proportion to the stages."""
    monkeypatch.setattr(snapshots, "EVERY_EVENTS", 80)
    requests, calls = [], []
    for stages in (10, 40):
        run = LongRun(tmp_path / str(stages)).grow(stages)
        work = Workspace(run.spec, "run.yaml")
        asked: Counter[str] = Counter()
        with monkeypatch.context() as patch:
            for name in ("read", "list", "info", "exists"):
                patch.setattr(LocalStore, name, _counting(getattr(LocalStore, name), asked))
            calls.append(count_calls(partial(read_status, work, 5)))
        requests.append(asked.total())
    assert requests[0] == requests[1]
    assert calls[1] <= 4 * calls[0]


def _counting(real: Callable[..., Any], asked: Counter[str]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        asked[real.__name__] += 1
        return real(*args, **options)

    return call
