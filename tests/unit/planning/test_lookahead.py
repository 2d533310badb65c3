"""The forecast is the machine walked ahead: what `run` will write, and what it will refuse."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.config import RunSpec
from perennial.errors import InputError
from perennial.planning.lookahead import Expected, expected_corpora, look_ahead
from perennial.runs import events
from perennial.runs.actions import Outside, next_action
from perennial.runs.stage_planner import decide_stage, order_of
from perennial.runs.state import RunState
from tests.support.tiny_run import tiny_run

AT = "2026-01-01T00:00:00+00:00"
SCHEDULES_OF_ALL_KINDS: list[dict[str, Any]] = [
    {"kind": "infinite", "eta_max": 3e-3, "eta_min": 3e-4},
    {"kind": "cosine", "eta_max": 3e-3, "eta_min": 3e-4},
    {"kind": "constant", "eta_const": 1e-3},
]


def _spec(**changes: Any) -> RunSpec:
    document = tiny_run(Path("/nowhere"))
    for section, value in changes.items():
        document[section] = value if "kind" in value else document[section] | value
    return RunSpec.model_validate(document)


def _ready(state: RunState, name: str, rows: int) -> None:
    state.apply(events.Landed(at=AT, corpus=name, size_bytes=rows * 500))
    state.apply(events.Ingesting(at=AT, corpus=name))
    ready = events.Ready(at=AT, corpus=name, sequences=rows, tokens=rows * 128, digest="d")
    state.apply(ready)


def _train(spec: RunSpec, state: RunState, corpus: str, joined: Sequence[str] = ()) -> None:
    state.apply(decide_stage(spec, state, corpus, AT, "", reschedule=False, joined=joined))
    stage = state.stages[-1]
    end = f"{stage.folder}/{stage.last_step:08d}"
    state.apply(events.Trained(at=AT, corpus=corpus, checkpoint=end, step=stage.last_step))
    state.apply(events.Evaluating(at=AT, corpus=corpus))
    state.apply(events.Evaluated(at=AT, corpus=corpus, losses={}))
    state.apply(events.Passed(at=AT, corpus=corpus, verdicts=[]))


def _train_all(spec: RunSpec, state: RunState, count: int) -> None:
    """Stages until so many ready corpora are trained, as the controller starts them."""
    while sum(len(stage.corpora) for stage in state.stages) < count:
        step = next_action(state, Outside(), order_of(spec))
        assert step is not None
        assert step.verb == "start"
        _train(spec, state, step.subject, step.joined)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(8, 900), min_size=1, max_size=5),
    trained=st.integers(0, 5),
    share=st.sampled_from([0.0, 0.05, 0.25, 1.0]),
    schedule=st.sampled_from(SCHEDULES_OF_ALL_KINDS),
    budget=st.sampled_from(["12 steps", "100%", "9k tokens"]),
    batch=st.sampled_from([None, {}, {"max_corpora": 2}, {"max_tokens": "100k tokens"}]),
)
def test_i4_the_forecast_of_counted_corpora_is_what_the_run_then_starts(
    rows: list[int], trained: int, share: float, schedule: Any, budget: str, batch: Any
) -> None:
    spec = _spec(
        replay={"share": share},
        schedule=schedule | {"warmup": "0 steps"},
        stages={"budget": budget, "batch_arrivals": batch},
    )
    state = RunState()
    for index, count in enumerate(rows):
        _ready(state, f"c{index}", count)
    with contextlib.suppress(InputError):
        _train_all(spec, state, min(trained, len(rows)))
    before, done = copy.deepcopy(state), len(state.stages)
    try:
        ahead = look_ahead(spec, state, ())
    except InputError as refused:
        with pytest.raises(InputError, match=re.escape(str(refused))):
            _train_all(spec, state, len(rows))
        return
    assert state == before, "a forecast changes nothing"
    _train_all(spec, state, len(rows))
    assert [stage for stage, _ in ahead.stages] == state.stages[done:]
    assert {basis for _, basis in ahead.stages} <= {"counted"}


def test_a_planned_corpus_holds_its_budget_and_follows_what_has_landed() -> None:
    spec = _spec(stages={"corpora": {"later": {"budget": "20 steps"}, "b": {"budget": "7 steps"}}})
    state = RunState()
    _ready(state, "a", 800)
    expected = expected_corpora(spec, state, {"b": 60_000})
    assert [(each.name, each.basis) for each in expected] == [
        ("b", "estimated"),
        ("later", "planned"),
    ]
    ahead = look_ahead(spec, state, expected)
    assert [(s.name, s.mix.steps, basis) for s, basis in ahead.stages] == [
        ("00-a", 12, "counted"),
        ("01-b", 7, "estimated"),
        ("02-later", 20, "planned"),
    ]
    new = ahead.stages[2][0].mix.sources[0]
    assert (new.extent, new.sequences) == (160, 120)  # a quarter of it is displaced by replay
    assert ahead.unknown == ()


def test_a_corpus_that_is_not_ingested_is_forecast_in_the_parts_that_have_weights() -> None:
    weights = {"wiki": 3, "web": 1, "spam": 0}
    spec = _spec(stages={"corpora": {"later": {"budget": "20 steps", "weights": weights}}})
    ahead = look_ahead(spec, RunState(), expected_corpora(spec, RunState(), {}))
    ((stage, basis),) = ahead.stages
    assert basis == "planned"
    assert {s.name: s.sequences for s in stage.mix.sources} == {
        "later[wiki]": 120,
        "later[web]": 40,
    }


def test_what_is_only_measured_has_no_stage_to_come() -> None:
    spec = _spec(stages={"corpora": {"c": {"budget": "9 steps"}}, "only": ["a"]})
    state = RunState()
    for name in "ab":
        _ready(state, name, 800)
    ahead = look_ahead(spec, state, expected_corpora(spec, state, {}))
    assert [stage.name for stage, _ in ahead.stages] == ["00-a"]
    assert ahead.unknown == ()


def test_what_has_landed_is_forecast_as_one_stage_and_what_has_not_as_its_own() -> None:
    budget = {"corpora": {"later": {"priority": 0}, "b": {}}, "batch_arrivals": {}}
    spec, state = _spec(stages=budget), RunState()
    _ready(state, "a", 800)
    _ready(state, "b", 400)
    ahead = look_ahead(spec, state, (*expected_corpora(spec, state, {"c": 60_000}),))
    assert [(s.name, s.corpora, basis) for s, basis in ahead.stages] == [
        ("00-a-and-2-more", ("a", "b", "c"), "estimated"),
        ("01-later", ("later",), "planned"),
    ]
    assert {s.corpus: s.sequences for s in ahead.stages[0][0].mix.sources} == {
        "a": 58,
        "b": 29,
        "c": 9,
    }


def test_corpora_that_are_trained_otherwise_keep_a_stage_of_their_own() -> None:
    stages = {
        "corpora": {"b": {"budget": "7 steps"}, "c": {"replay": 0.5}, "d": {"optimizer": "keep"}},
        "batch_arrivals": {"max_tokens": "200k tokens"},
    }
    spec, state = _spec(stages=stages), RunState()
    for name in "abcdefg":
        _ready(state, name, 600)  # 76,800 tokens
    ahead = look_ahead(spec, state, ())
    assert [stage.corpora for stage, _ in ahead.stages] == [
        ("a",),
        ("b",),
        ("c",),
        ("d",),
        ("e", "f"),
        ("g",),
    ]


def test_what_waits_behind_a_corpus_of_unknown_size_is_unknown() -> None:
    spec = _spec(stages={"budget": "100%", "corpora": {"b": {}, "c": {"budget": "9 steps"}}})
    state = RunState()
    _ready(state, "a", 80)
    ahead = look_ahead(spec, state, expected_corpora(spec, state, {}))
    assert [stage.name for stage, _ in ahead.stages] == ["00-a"]
    assert ahead.unknown == ("b", "c")


def test_the_size_of_a_landed_corpus_is_estimated_from_what_bytes_became_before() -> None:
    spec = _spec(stages={"budget": "100%"})
    state = RunState()
    _ready(state, "a", 80)  # 500 bytes a sequence
    assert expected_corpora(spec, state, {"b": 50_000}) == (Expected("b", "estimated", 100),)
    assert expected_corpora(spec, RunState(), {"b": 50_000}) == (Expected("b", "estimated", None),)


def test_a_started_stage_is_finished_first_and_a_refused_corpus_has_none() -> None:
    spec, state = _spec(), RunState()
    for name in "abc":
        _ready(state, name, 800)
    state.apply(events.Refused(at=AT, corpus="b", reason="no"))
    state.apply(decide_stage(spec, state, "a", AT, "mlflow", reschedule=False))
    ahead = look_ahead(spec, state, ())
    assert [stage.name for stage, _ in ahead.stages] == ["00-a", "01-c"]
    assert ahead.stages[0][0] == state.stages[0]


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        (
            {"stages": {"corpora": {"a": {"budget": "10 tokens"}}}},
            "budget-too-small",
            "stages.corpora.a.budget",
        ),
        ({"schedule": {"warmup": "9 steps"}}, "schedule-too-long", "schedule.warmup"),
        (
            {"replay": {"weighting": "fixed", "weights": {"aa": 1.0}}},
            "corpus-missing",
            "replay.weights.aa",
        ),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], code: str, field: str) -> None:
    spec = _spec(**({"stages": {"corpora": {"a": {}}}} | changes))
    with pytest.raises(InputError) as refused:
        look_ahead(spec, RunState(), expected_corpora(spec, RunState(), {}))
    assert (refused.value.code, refused.value.field) == (code, field)


def test_a_proxy_that_has_not_landed_is_taken_to_hold_its_budget() -> None:
    proxies = {"corpora": {"a": {}, "web": {"role": "replay"}}}
    spec, state = _spec(stages=proxies), RunState()
    ahead = look_ahead(spec, state, expected_corpora(spec, state, {}))
    ((stage, basis),) = ahead.stages
    assert (stage.name, basis) == ("00-a", "planned")
    assert {s.corpus: s.sequences for s in stage.mix.sources} == {"a": 72, "web": 24}
