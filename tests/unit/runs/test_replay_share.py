"""The share of replay that a measured shift takes, and the stage that begins with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.audit.checks import check_stages, fold
from perennial.config import RunSpec
from perennial.errors import InputError
from perennial.evaluation.shift import Ratio, TextCost
from perennial.runs.event_codec import decode, encode
from perennial.runs.events import Event, Retried, Started
from perennial.runs.ledger import digest_of
from perennial.runs.stage_planner import decide_stage
from perennial.runs.state import RunState
from perennial.runs.unattended.replay_share import ShareDecision, ShareRule, decide_share
from tests.support.event_factory import AT, ROWS, WALK, event_of
from tests.support.tiny_run import tiny_run


def _cost(bits: float | None, error: float | None = 0.02, tokens: float | None = 0.3) -> TextCost:
    ratio = None if bits is None else Ratio(bits, error)
    per_byte = None if tokens is None else Ratio(tokens, 0.001)
    return TextCost(50, ratio, per_byte, ratio if tokens else None)


def _decision(model: str = "c/a", own: float = 2.0, new: float = 3.0) -> ShareDecision:
    return decide_share(model, _cost(own), _cost(new))


@pytest.mark.parametrize(
    ("own", "new", "share"),
    [
        (2.17, 2.70, 0.05),  # Pile to SlimPajama, 405M parameters
        (1.75, 2.24, 0.06),  # the same, 10B
        (1.954, 4.290, 0.25),  # English to French, 1.8M, of the study of the gap
        (2.264, 4.495, 0.25),  # the same, of the quickstart
        (2.5, 2.0, 0.05),  # a text that is easier than the trunk's own
        (2.0, 3.25, 0.15),  # halfway
    ],
)
def test_the_share_of_a_shift(own: float, new: float, share: float) -> None:
    assert _decision(own=own, new=new).share == share


@given(st.floats(-1, 5), st.floats(-1, 5))
def test_a_stronger_shift_never_takes_less_replay_and_the_ends_bound_it(
    one: float, other: float
) -> None:
    rule = ShareRule()
    low, high = rule.share_of(min(one, other)), rule.share_of(max(one, other))
    assert 0.05 <= low <= high <= 0.25


def test_the_reasons_hold_the_numbers_their_errors_and_the_rule() -> None:
    told = _decision(new=3.25).describe()
    assert told == (
        "15% (14% to 16% within two errors) for a shift of +62.5% ± 1.9%: the new text costs 3.250 "
        "± 0.020 bits per byte, the trunk's own 2.000 ± 0.020 (5% up to +25%, 25% from +100% on); "
        "tokens a byte: 0.300 ± 0.001 and 0.300 ± 0.001"
    )


def test_where_bytes_are_not_known_tokens_are_compared() -> None:
    decision = decide_share("m", _cost(2.0, tokens=None), _cost(3.25))
    assert (decision.unit, decision.share) == ("nats per token", 0.15)


def test_a_loss_that_is_no_number_takes_the_share_of_a_strong_shift() -> None:
    decision = decide_share("m", _cost(2.0), _cost(None))
    assert (decision.shift, decision.share, decision.interval) == (None, 0.25, None)
    assert "a loss is not a number" in decision.describe()
    json.dumps(decision.describe(), allow_nan=False)


def _spec(**stages: object) -> RunSpec:
    document = tiny_run(Path("/nowhere"))
    document["replay"]["share"] = "auto"
    document["stages"] |= stages
    return RunSpec.model_validate(document)


def _state(*ready: str) -> RunState:
    state = RunState()
    for corpus in ready:
        for kind in WALK[:3]:
            state.apply(event_of(kind, state, corpus))
    return state


def _train(state: RunState, started: Started) -> None:
    state.apply(started)
    for kind in WALK[4:]:
        state.apply(event_of(kind, state, started.corpus))


def test_the_first_stage_has_nothing_to_replay_and_measures_nothing() -> None:
    state = _state("a", "b")
    first = decide_stage(_spec(), state, "a", AT, "", reschedule=False)
    assert (first.mix.replay.share, first.share_decision) == (0.0, None)
    assert "share_decision" not in json.loads(encode(first))


def test_a_stage_begins_with_the_decision_and_keeps_it() -> None:
    spec, state = _spec(), _state("a", "b")
    _train(state, decide_stage(spec, state, "a", AT, "", reschedule=False))
    decision = _decision(new=3.25)
    second = decide_stage(spec, state, "b", AT, "", reschedule=False, auto=decision)
    taken = {source.corpus: source.sequences for source in second.mix.sources}
    assert taken == {"b": 82, "a": 14}  # 15% of 96
    read = decode(encode(second)).event
    assert read == second
    _train(state, second)
    assert state.stages[1].share_decision == decision


def test_a_share_that_was_not_measured_is_refused() -> None:
    spec, state = _spec(), _state("a", "b")
    _train(state, decide_stage(spec, state, "a", AT, "", reschedule=False))
    with pytest.raises(InputError, match="the shift before the stage of b was not measured"):
        decide_stage(spec, state, "b", AT, "", reschedule=False)


def test_what_a_user_sets_for_one_stage_is_not_measured() -> None:
    state = _state("a", "b", "c")
    spec = _spec(corpora={"b": {"replay": 0.5}})
    _train(state, decide_stage(spec, state, "a", AT, "", reschedule=False))
    assert decide_stage(spec, state, "b", AT, "", reschedule=False).mix.replay.share == 0.5
    state.apply(event_of("held", state, "c"))
    state.apply(Retried(at=AT, corpus="c", replay=0.1))
    assert decide_stage(spec, state, "c", AT, "", reschedule=False).mix.replay.share == 0.1


def _findings(decision: ShareDecision) -> list[str]:
    """What is found of a second stage that began with a decision."""
    spec, state, told = _spec(), RunState(), list[Event]()
    story = [("a", kind) for kind in WALK] + [("b", kind) for kind in WALK[:4]]
    for corpus, kind in story:
        event: Event = event_of(kind, state, corpus)
        if kind == "started":
            event = decide_stage(spec, state, corpus, AT, "", reschedule=False, auto=decision)
            if corpus == "a":
                event = event.model_copy(update={"share_decision": None})
        state.apply(event)
        told.append(event)
    ledger, before = {}, ""
    for number, event in enumerate(told):
        data = encode(event, before)
        ledger[f"ledger/{number:012d}.json"], before = data, digest_of(data)
    checked = fold(ledger)
    found = [*checked.findings, *check_stages(checked, dict.fromkeys("ab", ROWS))]
    return [str(each) for each in found if each.key == max(ledger)]


def test_verify_takes_a_share_that_follows_from_its_numbers_and_no_other() -> None:
    assert _findings(_decision()) == []
    strange = decide_share("c/a", _cost(2.0), _cost(3.0))
    strange = ShareDecision(**{**vars(strange), "share": 0.5})
    assert "share of replay: 01-b has 0.5; what was measured gives 0.12" in _findings(strange)[0]
    other = _decision(model="c/z")
    assert "measured model: 01-b has c/z; what was measured gives c/a" in _findings(other)[0]
