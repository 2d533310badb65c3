"""The plan of a release under a mixture: what it trains on, its name, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec
from perennial.config.run import ReleaseSpec
from perennial.mixture import branch_mix
from perennial.runs import events
from perennial.runs.release_policy import due
from perennial.runs.stage_planner import check_not_another, decide_release
from perennial.runs.state import RunState
from tests.support.event_factory import AT, event_of, released, walk
from tests.support.refusal import refused
from tests.support.tiny_run import tiny_run


def _spec(**release: Any) -> RunSpec:
    document = tiny_run(Path("/nowhere"))
    document["release"] |= release
    return RunSpec.model_validate(document)


@pytest.fixture
def state() -> RunState:
    """Three stages of 80 sequences, a quarter of the later ones replayed."""
    state = RunState()
    for name in "abc":
        walk(state, name)
    return state


def _decide(state: RunState, **release: Any) -> events.Releasing:
    stage = state.stages[-1]
    return decide_release(_spec(**release), state, stage, stage.last_step, None, AT)


def _taken(decided: events.Releasing) -> dict[str, int]:
    assert decided.mix is not None
    return {source.corpus: source.sequences for source in decided.mix.sources}


def test_the_usual_release_is_planned_and_named_as_before_there_were_mixtures(
    state: RunState,
) -> None:
    decided = _decide(state)
    assert decided.name == "02-c-30-anneal4"
    assert decided.mix == branch_mix(state.history, 4, ())
    assert "mixture" not in decided.model_dump(mode="json")["mix"]
    assert _taken(decided) == {"c": 24, "a": 5, "b": 3}


@pytest.mark.parametrize(
    ("mixture", "taken", "name"),
    [
        ("seen", {"a": 15, "b": 9, "c": 8}, "02-c-30-anneal4-seen"),
        ("balanced", {"a": 11, "b": 11, "c": 10}, "02-c-30-anneal4-balanced"),
        ({"b": 3, "a": 1}, {"b": 24, "a": 8}, "02-c-30-anneal4-mix"),
    ],
)
def test_a_mixture_is_in_the_plan_and_in_the_name(
    state: RunState, mixture: Any, taken: dict[str, int], name: str
) -> None:
    decided = _decide(state, mixture=mixture)
    assert _taken(decided) == taken
    assert decided.name.startswith(name)
    assert decided.name != _decide(state).name
    state.apply(decided)
    assert events.Releasing.model_validate(decided.model_dump(mode="json")) == decided


def test_a_shape_is_in_the_name_and_a_release_that_was_made_before_it_was_is_found(
    state: RunState,
) -> None:
    linear = _decide(state, shape="linear")
    assert linear.name == "02-c-30-anneal4-linear"
    assert _decide(state, shape="linear", mixture="seen").name == "02-c-30-anneal4-linear-seen"
    older = linear.model_copy(update={"name": "02-c-30-anneal4"})
    state.apply(older)
    assert _decide(state, shape="linear").name == older.name
    assert _decide(state, shape="linear", mixture="seen").name == "02-c-30-anneal4-linear-seen"
    assert _decide(state, shape="cosine").name == "02-c-30-anneal4-cosine"


def test_a_release_of_the_same_name_with_another_anneal_is_refused(state: RunState) -> None:
    spec = _spec(policy="each-stage")
    decided = _decide(state)
    state.apply(decided)
    check_not_another(state, _decide(state))
    state.apply(released(decided.name))
    document = spec.model_dump(mode="json")
    document["schedule"]["eta_min"] = 1e-4
    lower = RunSpec.model_validate(document)
    again = decide_release(lower, state, state.stages[-1], 30, None, AT)
    with refused("release-name-taken", "release") as caught:
        check_not_another(state, again)
    assert "another anneal (eta_min: 0.0003 -> 0.0001)" in caught.value.problem
    assert due(lower, state, lambda _: [30], AT) == [], "a policy makes it once"


def test_corpora_that_are_retired_or_held_are_left_out(state: RunState) -> None:
    walk(state, "a", "retired")
    assert _taken(_decide(state, mixture="balanced")) == {"b": 16, "c": 16}
    with refused("mixture-corpus", "release.mixture.a") as caught:
        _decide(state, mixture={"a": 1, "b": 1})
    assert caught.value.problem == "the anneal cannot take a: it is retired"
    assert caught.value.remedy == "weigh b, c"
    walk(state, "b", "retired")
    walk(state, "c", "retired")
    with refused("every-corpus-retired"):
        _decide(state, mixture="balanced")


def test_a_proxy_that_is_held_is_left_out_of_every_mixture_but_the_stages(
    state: RunState,
) -> None:
    walk(state, "web", "landed", "ingesting", "ready")
    rule = state.stages[-1].mix.replay.model_copy(update={"proxies": {"web": 80}})
    object.__setattr__(state.stages[-1].mix, "replay", rule)
    assert _taken(_decide(state, mixture="balanced")) == {"web": 8, "a": 8, "b": 8, "c": 8}
    state.apply(event_of("held", state, "web"))
    assert set(_taken(_decide(state, mixture="balanced"))) == {"a", "b", "c"}


def test_a_corpus_that_the_trunk_has_not_seen_is_refused_by_its_name(state: RunState) -> None:
    with refused("mixture-corpus", "release.mixture.d") as caught:
        _decide(state, mixture={"a": 1, "d": 2})
    assert caught.value.problem == "the anneal cannot take d: the trunk has not trained on it"
    assert caught.value.remedy == "weigh a, b, c"


@pytest.mark.parametrize(
    "mixture", ["newest", {}, {"a": 0}, {"a": -1}, {"a": float("nan")}, {"a": float("inf")}, 3]
)
def test_what_is_no_mixture_is_refused_when_the_run_file_is_read(mixture: Any) -> None:
    with pytest.raises(ValueError, match="mixture"):
        ReleaseSpec.model_validate({"mixture": mixture})
