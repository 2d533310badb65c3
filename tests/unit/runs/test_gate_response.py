"""The answer to a broken gate: more replay where that can help, within bounds, else a user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.config import RunSpec
from perennial.evaluation.gates import Verdict
from perennial.runs import events
from perennial.runs.actions import Action, Outside, next_action
from perennial.runs.event_codec import decode, encode
from perennial.runs.stage_planner import decide_stage
from perennial.runs.state import RunState
from perennial.runs.unattended.gate_response import GateResponse, respond_to_gate
from tests.support.event_factory import AT, WALK, event_of, walk
from tests.support.tiny_run import tiny_run

FORGOT = Verdict("max_forgetting", "a", 0.4, 0.01, 0.1, False)


def _spec(share: float = 0.1, **gates: Any) -> RunSpec:
    document = tiny_run(Path("/nowhere"))
    document["replay"]["share"] = share
    document["gates"] = {"on_broken": "retry-with-more-replay", **gates}
    return RunSpec.model_validate(document)


def _gated(spec: RunSpec, *verdicts: Verdict) -> RunState:
    """A trunk whose second stage broke its gates."""
    state = RunState()
    walk(state, "a")
    walk(state, "b", *WALK[:3])
    _try(spec, state, *verdicts)
    return state


def _try(spec: RunSpec, state: RunState, *verdicts: Verdict) -> None:
    state.apply(decide_stage(spec, state, "b", AT, "", reschedule=True))
    walk(state, "b", *WALK[4:7])
    state.apply(events.Gated(at=AT, corpus="b", verdicts=list(verdicts)))


def _again(state: RunState, response: GateResponse) -> None:
    share, why = response.replay, response.reason
    retried = events.Retried(at=AT, corpus="b", by_person=False, replay=share, reason=why)
    state.apply(decode(encode(retried)).event)


def test_a_stage_that_forgot_is_trained_again_with_twice_its_replay_until_a_bound() -> None:
    spec = _spec(max_retries=3)
    state, shares = _gated(spec, FORGOT), list[float]()
    while (response := respond_to_gate(spec, state)) and response.replay is not None:
        assert next_action(state, Outside(answer="retry-with-more-replay")) == Action(
            "retry-with-more-replay", "b"
        )
        assert next_action(state, Outside()) == Action("wait", "b")
        _again(state, response)
        assert state.corpora[
            "b"
        ].reason == "01-b: max_forgetting of a is +0.400, bound 0.1".replace(
            "01", f"{len(shares) + 1:02d}"
        )
        shares.append(response.replay)
        _try(spec, state, FORGOT)
        assert state.stages[-1].mix.replay.share == response.replay
    assert shares == [0.2, 0.4, 0.5]
    assert respond_to_gate(spec, state) == GateResponse(
        "b", None, "its replay share is 50% already"
    )
    assert len(state.abandoned) == 3
    state.validate()


@pytest.mark.parametrize(
    ("bounds", "tries", "reason"),
    [
        ({}, 2, "it was trained again 2 of 2 times"),
        ({"max_retries": 1}, 1, "it was trained again 1 of 1 times"),
        ({"retry_tokens": "100%"}, 1, "its retries would make 24,576 tokens, more than 100%"),
        ({"retry_tokens": "50%"}, 0, "its retries would make 12,288 tokens, more than 50%"),
        ({"retry_tokens": "25k tokens"}, 2, "it was trained again 2 of 2 times"),
    ],
)
def test_retries_are_bounded_in_tries_and_in_tokens(
    bounds: dict[str, Any], tries: int, reason: str
) -> None:
    spec = _spec(share=0.01, **bounds)
    state, done = _gated(spec, FORGOT), 0
    while (response := respond_to_gate(spec, state)) and response.replay is not None:
        _again(state, response)
        _try(spec, state, FORGOT)
        done += 1
    assert response is not None
    assert (done, response.reason) == (tries, reason)


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        (
            [FORGOT, Verdict("max_adaptation", "b", 5.0, 0.1, 4.0, False)],
            "max_adaptation of b is nothing that more replay would mend",
        ),
        (
            [Verdict("finite", "a", None, None, 0.0, False, "not a number")],
            "finite of a is nothing that more replay would mend",
        ),
        (
            [Verdict("max_forgetting", "a", None, None, 0.1, False, "not measured")],
            "max_forgetting of a is nothing that more replay would mend",
        ),
        (
            [Verdict("max_forgetting", "z", 0.4, None, 0.1, False)],
            "max_forgetting of z is broken, and z is not replayed",
        ),
    ],
)
def test_what_more_replay_would_not_mend_waits_for_a_user(
    verdicts: list[Verdict], reason: str
) -> None:
    spec = _spec()
    assert respond_to_gate(spec, _gated(spec, *verdicts)) == GateResponse("b", None, reason)


def test_a_stage_that_replayed_nothing_by_choice_begins_with_little() -> None:
    spec = _spec(share=0.0)
    response = respond_to_gate(spec, _gated(spec, FORGOT))
    assert response is not None
    assert response.replay == 0.05


def test_a_drop_of_a_task_is_mended_like_forgetting() -> None:
    spec = _spec(share=0.02)
    verdict = Verdict("tasks.max_drop", "hellaswag", 0.1, 0.01, 0.02, False)
    response = respond_to_gate(spec, _gated(spec, verdict))
    assert response is not None
    assert response.replay == 0.05


def test_by_default_a_broken_gate_stops_the_run() -> None:
    spec = RunSpec.model_validate(tiny_run(Path("/nowhere")))
    assert respond_to_gate(spec, _gated(spec, FORGOT)) is None


def test_a_user_who_retries_begins_the_count_again() -> None:
    spec = _spec(max_retries=1)
    state = _gated(spec, FORGOT)
    response = respond_to_gate(spec, state)
    assert response is not None
    _again(state, response)
    assert state.corpora["b"].retries == 1
    _try(spec, state, FORGOT)
    state.apply(event_of("retried", state, "b"))
    assert (state.corpora["b"].retries, state.corpora["b"].replay) == (0, None)


@given(st.floats(0, 1), st.integers(1, 20))
def test_every_chain_of_retries_ends(share: float, most: int) -> None:
    spec = _spec(share=share, max_retries=most)
    state, done = _gated(spec, FORGOT), 0
    while (response := respond_to_gate(spec, state)) and response.replay is not None:
        assert response.replay > state.stages[-1].mix.replay.share
        _again(state, response)
        _try(spec, state, FORGOT)
        done += 1
    assert done <= min(most, 5)
