"""An alias points to a release whose gates hold, and back to the one before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from perennial.errors import InvalidTransition
from perennial.runs.events import Promoted
from perennial.runs.release_policy import decide_promotion
from perennial.runs.state import RunState
from tests.support.event_factory import (
    AT,
    WALK,
    event_of,
    released,
    releasing,
    rewound,
    walk,
)
from tests.support.refusal import refused


@pytest.fixture
def state() -> Iterator[RunState]:
    """A release of a stage that passed, one of a stage that was accepted, one that is not made."""
    run = RunState()
    walk(run, "a")
    _release(run, "good")
    walk(run, "b", *WALK[:-1], "gated")
    run.apply(event_of("accepted", run, "b"))
    _release(run, "accepted")
    run.apply(releasing(run, "begun"))
    yield run
    run.validate()


def _release(state: RunState, name: str) -> None:
    state.apply(releasing(state, name))
    state.apply(released(name))


def _decide(state: RunState, release: str, alias: str = "production") -> Promoted | None:
    return decide_promotion(state, release, alias, "", AT)


def _promote(state: RunState, release: str) -> None:
    event = _decide(state, release)
    assert event is not None
    state.apply(event)


def test_an_alias_moves_and_goes_back(state: RunState) -> None:
    walk(state, "c")
    _release(state, "better")
    _promote(state, "good")
    assert _decide(state, "good") is None, "it points there already"
    _promote(state, "better")
    assert (state.aliases_of("good"), state.aliases_of("better")) == ((), ("production",))
    _promote(state, "previous")
    assert state.aliases_of("good") == ("production",)
    _promote(state, "previous")
    assert state.aliases_of("better") == ("production",)
    assert _decide(state, "good", "canary") is not None, "each alias by itself"


@pytest.mark.parametrize(
    ("release", "alias", "code", "what"),
    [
        ("none", "production", "release-missing", "its releases: good, accepted"),
        ("begun", "production", "release-missing", "there is no release 'begun'"),
        ("previous", "production", "release-missing", "production points to no release"),
        ("accepted", "production", "gates-not-held", "01-b broke max_adaptation of b, and was"),
        ("good", "latest", "alias-invalid", "'latest' is no alias"),
        ("good", "v2", "alias-invalid", "'v2' is no alias"),
        ("good", "stage-00-a", "alias-invalid", "no alias"),
        ("good", "../up", "alias-invalid", "no alias"),
        ("good", "Production", "alias-invalid", "no alias"),
    ],
)
def test_what_may_not_be_is_refused(
    state: RunState, release: str, alias: str, code: str, what: str
) -> None:
    with refused(code) as wrong:
        _decide(state, release, alias)
    assert what in str(wrong.value)


def test_a_stage_without_verdicts_is_not_promoted(state: RunState) -> None:
    walk(state, "c", *WALK[:5])
    _release(state, "early")
    with refused("gates-not-held") as wrong:
        _decide(state, "early")
    assert "02-c has no verdicts of its gates yet" in str(wrong.value)


def test_there_is_no_way_back_from_the_first(state: RunState) -> None:
    _promote(state, "good")
    with refused("release-missing") as wrong:
        _decide(state, "previous")
    assert "production points to good, and to nothing before" in str(wrong.value)


def test_a_release_of_a_stage_that_left_the_trunk_keeps_its_alias(state: RunState) -> None:
    walk(state, "c")
    _release(state, "better")
    _promote(state, "good")
    _promote(state, "better")
    state.apply(rewound(state.stages[0]))
    assert state.aliases_of("better") == ("production",)
    _promote(state, "previous")
    _promote(state, "better")


@pytest.mark.parametrize("release", ["begun", "none", "good"])
def test_an_event_that_cannot_follow_changes_nothing(state: RunState, release: str) -> None:
    _promote(state, "good")
    before: Any = repr(state)
    with pytest.raises(InvalidTransition):
        state.apply(Promoted(at=AT, release=release, alias="production"))
    assert repr(state) == before
