"""Which corpora the end of a stage is measured on, by the run file and the ledger alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec
from perennial.evaluation import HeldoutLoss
from perennial.evaluation.budget import Draw
from perennial.runs import snapshots
from perennial.runs.event_codec import decode, encode
from perennial.runs.events import Evaluated, Evaluating
from perennial.runs.ledger import Ledger
from perennial.runs.state import RunState
from perennial.runs.summary import matrix
from perennial.runs.unattended.evaluation_draw import decide_draw
from tests.support.event_factory import AT, walk
from tests.support.long_run import LongRun, draw_within, long_spec, stage_events


def _spec(folder: Path, **gates: Any) -> RunSpec:
    return long_spec(folder, {"evaluation": {"corpora": 2}, "gates": gates})


def _grow(spec: RunSpec, stages: int) -> RunState:
    state = RunState()
    for _ in range(stages):
        for event in draw_within(spec, state, stage_events(spec, state)):
            state.apply(event)
    return state


def _names(*numbers: int) -> tuple[str, ...]:
    return tuple(f"corpus-{number:05d}" for number in numbers)


def test_without_a_budget_nothing_is_drawn_and_events_are_as_they_were(tmp_path: Path) -> None:
    spec = long_spec(tmp_path)
    state = _grow(spec, 3)
    assert decide_draw(spec, state, state.stages[-1], [*state.corpora]) is None
    assert [len(losses) for losses in state.losses.values()] == [1, 2, 3]
    assert b"draw" not in encode(Evaluating(at=AT, corpus="a"))
    assert b"draw" not in encode(Evaluated(at=AT, corpus="a", losses={}))
    assert not matrix(state).draws


def test_a_stage_is_measured_on_its_own_corpus_and_what_was_drawn(tmp_path: Path) -> None:
    state = _grow(_spec(tmp_path), 7)
    chosen = [tuple(losses) for losses in state.losses.values()]
    assert chosen[:3] == [_names(0), _names(0, 1), _names(0, 1, 2)], "all of them fit"
    assert all(len(names) == 3 for names in chosen[3:])
    assert [names[-1:] for names in chosen] == [_names(number) for number in range(7)]
    earlier = {name for names in chosen[3:] for name in names[:-1]}
    assert len(earlier) > 3, "each stage takes other ones"


def test_a_corpus_that_a_gate_names_is_always_measured(tmp_path: Path) -> None:
    state = _grow(_spec(tmp_path, max_forgetting=1.0, corpora=["*-00001"]), 7)
    named = _names(1)
    for stage in state.stages[2:]:
        assert {*named} <= {*state.losses[stage.name]}
    draw = state.draws[state.stages[-1].name]
    assert draw is not None
    assert (draw.always, len(draw.drawn), draw.of) == (named, 2, 5)


def test_a_corpus_that_waits_for_its_stage_is_not_drawn_and_one_without_is(tmp_path: Path) -> None:
    spec = long_spec(
        tmp_path, {"evaluation": {"corpora": 9}, "stages": {"only": ["corpus-00000", "waits"]}}
    )
    state = RunState()
    for event in stage_events(spec, state):
        state.apply(event)
        if event.kind == "trained":
            break
    walk(state, "waits", "landed", "ingesting", "ready")
    walk(state, "watched", "landed", "ingesting", "ready")
    draw = decide_draw(spec, state, state.stages[-1], [*state.corpora])
    assert draw == Draw((), ("watched",), 0), "nothing is known of it that could be forgotten"


def test_a_ledger_that_is_read_again_draws_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a snapshot too, and between the draw and its measurements."""
    monkeypatch.setattr(snapshots, "EVERY_EVENTS", 5)
    run = LongRun(tmp_path, changes={"evaluation": {"corpora": 2}})
    for _ in range(8):
        state = run.ledger.state
        for event in draw_within(run.spec, state, stage_events(run.spec, state)):
            run.ledger.append(event)
            read = Ledger(run.store).read()
            assert read.drawing == state.drawing
    stage, ready = state.stages[-1], [*state.corpora]
    assert decide_draw(run.spec, read, stage, ready) == decide_draw(run.spec, state, stage, ready)
    assert {**read.draws} == {**state.draws}
    assert matrix(read, 3).to_dict() == matrix(state, 3).to_dict()


def test_events_keep_their_draw() -> None:
    draw = Draw(("a",), ("b", "c"), 17)
    loss = HeldoutLoss("a", 1.0, 0.5, 2, 10, 40, 0.1)
    for event in (
        Evaluating(at=AT, corpus="d", draw=draw),
        Evaluated(at=AT, corpus="d", losses={"a": loss}, draw=draw),
    ):
        assert decode(encode(event)).event == event
    assert asdict(draw)["of"] == 17
