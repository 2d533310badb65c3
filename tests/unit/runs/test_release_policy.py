"""Releases off any checkpoint of the trunk, by a person or by policy; and gates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec
from perennial.config.gates import GatesSpec
from perennial.evaluation import HeldoutLoss, LossMatrix
from perennial.evaluation.gates import Measurements, judge
from perennial.evaluation.loss import Change
from perennial.mixture import seen_sequences, truncate_mix
from perennial.runs.release_policy import due
from perennial.runs.stage_planner import decide_release
from perennial.runs.state import RunState, Stage
from tests.support.event_factory import AT, released, walk
from tests.support.tiny_run import tiny_run

STEPS = [4, 8, 10]


def _spec(**release: Any) -> RunSpec:
    document = tiny_run(Path("/nowhere"))
    document["release"] |= release
    return RunSpec.model_validate(document)


@pytest.fixture
def state() -> RunState:
    """Two stages of 10 steps, the second one passed just now."""
    run = RunState()
    walk(run, "a")
    walk(run, "b")
    return run


def _due(spec: RunSpec, state: RunState, now: str = AT) -> list[str]:
    def checkpoints(stage: Stage) -> list[int]:
        return [stage.first_step + step for step in STEPS]

    return [each.name for each in due(spec, state, checkpoints, now)]


def test_on_demand_nothing_is_due(state: RunState) -> None:
    assert _due(_spec(), state) == []


def test_each_stage_is_released_once_it_passed(state: RunState) -> None:
    spec = _spec(policy="each-stage")
    assert _due(spec, state) == ["01-b-20-anneal4"]
    state.apply(decide_release(spec, state, state.stages[1], 20, None, AT))
    assert _due(spec, state) == ["01-b-20-anneal4"]  # begun, and not there yet
    state.apply(released("01-b-20-anneal4"))
    assert _due(spec, state) == []
    walk(state, "c", "landed", "ingesting", "ready", "started", "trained")
    assert _due(spec, state) == []


def test_every_so_many_tokens_the_next_checkpoint_is_released(state: RunState) -> None:
    # A checkpoint at 14, 18 and 20; multiples of 6 steps are 12 and 18.
    assert _due(_spec(policy="every", every="6 steps"), state) == [
        "01-b-14-anneal4",
        "01-b-18-anneal4",
    ]
    assert _due(_spec(policy="every", every="100 steps"), state) == []


def test_a_timetable_releases_once_a_slot(state: RunState) -> None:
    spec = _spec(policy="schedule", schedule="0 2 * * *")
    assert _due(spec, state) == ["01-b-20-anneal4"]
    state.apply(decide_release(spec, state, state.stages[0], 10, None, AT))
    state.apply(released("00-a-10-anneal4"))
    assert _due(spec, state, "2026-01-01T01:00:00+00:00") == []
    assert _due(spec, state, "2026-01-01T03:00:00+00:00") == ["01-b-20-anneal4"]


@pytest.mark.parametrize(
    "release", [{"policy": "every"}, {"every": "1 steps"}, {"policy": "every", "every": "5%"}]
)
def test_a_policy_without_its_field_is_refused(release: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="every"):
        _spec(**release)


def test_i7_a_release_off_the_middle_of_a_stage_goes_on_from_what_was_trained(
    state: RunState,
) -> None:
    stage = state.stages[1]
    decided = decide_release(_spec(), state, stage, 14, None, AT)
    assert (decided.source, decided.name) == ("checkpoints/01-b/00000014", "01-b-14-anneal4")
    assert decided.mix is not None and decided.schedule is not None
    mix, part = decided.mix, truncate_mix(stage.mix, 4)
    assert decided.schedule["start_step"] == 14
    assert sum(seen_sequences([part]).values()) == 4 * stage.mix.global_batch
    for source, before in zip(mix.sources, part.sources, strict=True):
        assert source.start == before.start + before.sequences


def test_a_release_leaves_retired_corpora_out(state: RunState) -> None:
    walk(state, "a", "retired")
    decided = decide_release(_spec(), state, state.stages[1], 20, None, AT)
    assert decided.mix is not None
    assert [source.corpus for source in decided.mix.sources] == ["b"]


def _loss(corpus: str, nats: float, change_stderr: float | None = 0.02) -> HeldoutLoss:
    return HeldoutLoss(corpus, nats, nats, 10, 100, 400, 0.05, change_stderr)


def _measured(scores: Any = ()) -> Measurements:
    first = {"a": _loss("a", 4.0, None)}
    second = {"a": _loss("a", 4.3), "b": _loss("b", 3.0)}
    matrix = LossMatrix((("00-a", first), ("01-b", second)))
    return Measurements(matrix, {"b": Change(2.0, 0.01)}, scores)


@pytest.mark.parametrize(
    ("bounds", "holds"),
    [
        ({}, []),
        ({"max_forgetting": 0.31}, [True]),
        ({"max_forgetting": 0.29}, [False]),
        ({"max_forgetting": 0.29, "standard_errors": 2}, [True]),  # 0.30 - 2 x 0.02
        ({"max_adaptation": 2.9, "min_gain": 1.5}, [False, True]),
        ({"max_adaptation": 2.95, "standard_errors": 1.1, "min_gain": 2.1}, [True, False]),
        ({"min_gain": 2.005, "standard_errors": 1}, [True]),
        ({"min_gain": 2.02, "standard_errors": 1}, [False]),  # the gain's own 0.01, not 0.05
    ],
)
def test_gates_hold_the_stages_numbers_against_their_bounds(
    bounds: dict[str, Any], holds: list[bool]
) -> None:
    verdicts = judge(GatesSpec.model_validate(bounds), _measured())
    assert [verdict.holds for verdict in verdicts] == holds


def test_each_corpus_of_a_stage_is_held_against_the_bounds_of_its_own() -> None:
    first = {"a": _loss("a", 4.0, None)}
    second = {"a": _loss("a", 4.0), "b": _loss("b", 3.0), "c": _loss("c", 5.0)}
    stages = (("00-a", first), ("01-b-and-1-more", second))
    matrix = LossMatrix(stages, together={"01-b-and-1-more": ("b", "c")})
    bounds = GatesSpec.model_validate({"max_adaptation": 4.0, "min_gain": 0.1})
    verdicts = judge(bounds, Measurements(matrix, {"b": Change(2.0, 0.01)}))
    assert [(v.gate, v.subject, v.holds) for v in verdicts] == [
        ("max_adaptation", "b", True),
        ("min_gain", "b", True),
        ("max_adaptation", "c", False),
        ("min_gain", "c", False),
    ]
    assert verdicts[-1].reason == "it was not measured"


def test_a_task_gate_takes_the_named_metric_and_a_task_that_did_not_run_fails() -> None:
    bounds = GatesSpec.model_validate({"tasks": {"t": {"min": 0.4, "metric": "acc"}}})
    scores = [
        {"asked": "t", "task": "t", "metric": "exact", "value": 0.1, "stderr": 0.01},
        {"asked": "t", "task": "t", "metric": "acc", "value": 0.5, "stderr": 0.01},
    ]
    assert [v.holds for v in judge(bounds, _measured(scores))] == [True]
    (absent,) = judge(bounds, _measured())
    assert (absent.holds, absent.reason) == (False, "it was not run")
    (broken,) = judge(bounds, _measured([{"asked": "t", "task": "t", "reason": "no data"}]))
    assert (broken.holds, broken.reason) == (False, "no data")


@pytest.mark.parametrize(
    ("gate", "before", "holds"),
    [
        ({"max_drop": 0.1}, 0.58, [True]),
        ({"max_drop": 0.05}, 0.58, [False]),
        ({"max_drop": 0.05, "min": 0.6}, 0.58, [False, False]),
        ({"max_drop": 0.05, "min": 0.5}, 0.52, [True, True]),
        ({"max_drop": 0.05}, None, [False]),
    ],
)
def test_a_task_gate_compares_with_the_checkpoint_that_the_stage_started_from(
    gate: dict[str, Any], before: float | None, holds: list[bool]
) -> None:
    score = {"asked": "t", "task": "t", "metric": "acc", "value": 0.5, "stderr": 0.03}
    start = [] if before is None else [score | {"value": before, "stderr": 0.04}]
    measured = replace(_measured([score]), scores_before=start)
    bounds = GatesSpec.model_validate({"tasks": {"t": gate}})
    verdicts = judge(bounds, measured)
    assert [verdict.holds for verdict in verdicts] == holds
    drop = verdicts[-1]
    assert drop.gate == "tasks.max_drop"
    if before is not None:
        assert drop.value == pytest.approx(before - 0.5)
        assert drop.stderr == pytest.approx(0.05), "of both scores together"
        paired = replace(measured, scores=[score | {"stderr_of_change": 0.01}])
        assert judge(bounds, paired)[-1].stderr == 0.01, "over items paired with themselves"
    # The first stage started from nothing that could have scored.
    first = replace(measured, matrix=LossMatrix(measured.matrix.stages[:1]))
    assert all(v.gate == "tasks" for v in judge(bounds, first))


def test_a_task_gate_without_a_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="no bound is given; give min, max_drop or both"):
        GatesSpec.model_validate({"tasks": {"t": {"metric": "acc"}}})


def test_what_was_not_measured_does_not_hold() -> None:
    matrix = LossMatrix((("00-a", {}), ("01-b", {"b": _loss("b", 3.0)})))
    bounds = GatesSpec.model_validate({"max_forgetting": 1.0, "min_gain": 0.0})
    assert [v.holds for v in judge(bounds, Measurements(matrix))] == [False, False]


def test_the_first_stage_is_held_against_the_base_that_the_trunk_starts_from() -> None:
    base = {"a": _loss("a", 4.0), "general": _loss("general", 2.0)}
    wrecked = {"a": _loss("a", 9.0), "general": _loss("general", 8.0)}
    matrix = LossMatrix((("00-a", wrecked),), origins=(("base", base),))
    gates = {"max_forgetting": 0.3, "min_gain": 0.0, "tasks": {"t": {"max_drop": 0.1}}}
    score = {"asked": "t", "task": "t", "metric": "acc", "value": 0.5, "stderr": 0.01}
    measured = Measurements(
        matrix, {"a": Change(-5.0, 0.01)}, [score | {"value": 0.1}], scores_before=[score]
    )
    verdicts = judge(GatesSpec.model_validate(gates), measured)
    assert [(v.gate, v.subject, v.holds) for v in verdicts] == [
        ("max_forgetting", "general", False),
        ("min_gain", "a", False),
        ("tasks.max_drop", "t", False),
    ]
    from_random = replace(measured, matrix=LossMatrix(matrix.stages))
    assert [v.gate for v in judge(GatesSpec.model_validate(gates), from_random)] == []
