"""The pure controller: events in, instructions out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import pytest

from perennial.mixture import ReplayRule, stage_mix
from perennial.schedules import ConstantSchedule, to_dict
from perennial.stages import events
from perennial.stages.machine import (
    TRANSITIONS,
    CorpusState,
    Instruction,
    InvalidTransition,
    RunState,
    next_instruction,
)

AT = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def state() -> Iterator[RunState]:
    """A run that must hold together after every test."""
    run = RunState()
    yield run
    run.validate()


def landed(corpus: str) -> events.Landed:
    return events.Landed(at=AT, corpus=corpus, size_bytes=100)


def ready(corpus: str) -> events.Ready:
    return events.Ready(at=AT, corpus=corpus, sequences=80, tokens=2560, digest="d")


def started(state: RunState, corpus: str) -> events.Started:
    mix = stage_mix(state.history, corpus, 80, 10, 8, ReplayRule(0.25))
    stages = state.stages
    return events.Started(
        at=AT,
        corpus=corpus,
        stage=f"{len(stages):02d}-{corpus}",
        first_step=stages[-1].last_step if stages else 0,
        start=state.ends.get(stages[-1].name) if stages else None,
        mix=mix.to_dict(),
        schedule=to_dict(ConstantSchedule(1e-3)),
        tracking_run="r",
    )


def trained(corpus: str) -> events.Trained:
    return events.Trained(at=AT, corpus=corpus, checkpoint=f"c/{corpus}", step=10)


def evaluated(corpus: str) -> events.Evaluated:
    return events.Evaluated(at=AT, corpus=corpus, losses={corpus: {"nats_per_token": 1.0}})


def refused(corpus: str) -> events.Refused:
    return events.Refused(at=AT, corpus=corpus, reason="too small")


def train_whole(state: RunState, corpus: str) -> None:
    state.apply(landed(corpus))
    state.apply(ready(corpus))
    state.apply(started(state, corpus))
    state.apply(trained(corpus))
    state.apply(evaluated(corpus))


def test_a_corpus_is_led_from_landing_to_evaluation(state: RunState) -> None:
    inbox = ["a"]
    seen = []
    makers: dict[str, Callable[[], events.CorpusEvent]] = {
        "record-landing": lambda: landed("a"),
        "ingest": lambda: ready("a"),
        "start": lambda: started(state, "a"),
        "train": lambda: trained("a"),
        "evaluate": lambda: evaluated("a"),
    }
    while (instruction := next_instruction(state, inbox)) is not None:
        seen.append(instruction.verb)
        state.apply(makers[instruction.verb]())
    assert seen == ["record-landing", "ingest", "start", "train", "evaluate"]
    assert state.corpora["a"].story == ["landed", "ready", "started", "trained", "evaluated"]


def test_stages_follow_in_the_order_of_landing(state: RunState) -> None:
    train_whole(state, "z")
    state.apply(landed("m"))
    state.apply(landed("a"))
    state.apply(ready("m"))
    assert next_instruction(state, ["z", "m", "a"]) == Instruction("start", "m")


def test_what_was_begun_is_finished_before_anything_new(state: RunState) -> None:
    state.apply(landed("a"))
    state.apply(ready("a"))
    state.apply(started(state, "a"))
    assert next_instruction(state, ["a", "b"]) == Instruction("train", "a")
    state.apply(trained("a"))
    assert next_instruction(state, ["a", "b"]) == Instruction("evaluate", "a")
    state.apply(evaluated("a"))
    assert next_instruction(state, ["a", "b"]) == Instruction("record-landing", "b")


def test_a_refused_corpus_stands_in_nobodys_way(state: RunState) -> None:
    state.apply(landed("bad"))
    state.apply(landed("good"))
    state.apply(refused("bad"))
    assert next_instruction(state, ["bad", "good"]) == Instruction("ingest", "good")
    assert state.corpora["bad"].reason == "too small"


def test_i4_a_corpus_that_is_signalled_again_gives_no_second_stage(state: RunState) -> None:
    train_whole(state, "a")
    assert next_instruction(state, ["a", "a"]) is None
    with pytest.raises(InvalidTransition):
        state.apply(landed("a"))
    assert len(state.stages) == 1


WALKS: dict[CorpusState, list[str]] = {
    "unknown": [],
    "landed": ["landed"],
    "ready": ["landed", "ready"],
    "refused": ["landed", "refused"],
    "training": ["landed", "ready", "started"],
    "trained": ["landed", "ready", "started", "trained"],
    "evaluated": ["landed", "ready", "started", "trained", "evaluated"],
}
KINDS = ["landed", "ready", "refused", "started", "trained", "evaluated"]


def event_of(kind: str, state: RunState) -> events.CorpusEvent:
    """An event of that kind for corpus x, whether it can happen or not."""
    if kind == "started":
        return started(state, "x")
    made: list[events.CorpusEvent] = [landed("x"), ready("x"), refused("x"), trained("x")]
    return next((event for event in made if event.kind == kind), evaluated("x"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("here", get_args(CorpusState))
def test_only_the_table_moves_a_corpus(here: CorpusState, kind: str) -> None:
    """Any (state, event) pair that the table lacks raises with the corpus's history."""
    state = RunState()
    train_whole(state, "first")
    for walked in WALKS[here]:
        state.apply(event_of(walked, state))
    if (here, kind) in TRANSITIONS:
        state.apply(event_of(kind, state))
        assert state.corpora["x"].state == TRANSITIONS[here, kind]
        state.validate()
        return
    with pytest.raises(InvalidTransition) as caught:
        state.apply(event_of(kind, state))
    assert " -> ".join(WALKS[here] or ["nothing yet"]) in str(caught.value)


def test_a_controller_takes_over_with_the_next_epoch_only(state: RunState) -> None:
    state.apply(events.TookOver(at=AT, epoch=1, controller="a"))
    with pytest.raises(InvalidTransition):
        state.apply(events.TookOver(at=AT, epoch=3, controller="b"))
    state.apply(events.TookOver(at=AT, epoch=2, controller="b"))
    assert state.epoch == 2


def test_a_run_is_opened_once(state: RunState) -> None:
    state.apply(events.Opened(at=AT, spec={"name": "x"}))
    with pytest.raises(InvalidTransition):
        state.apply(events.Opened(at=AT, spec={"name": "y"}))


def test_cells_measured_later_join_the_stages_losses(state: RunState) -> None:
    train_whole(state, "a")
    cell = {"b": {"nats_per_token": 2.0}}
    state.apply(events.Measured(at=AT, stage="00-a", losses=cell))
    assert set(state.losses["00-a"]) == {"a", "b"}


def test_validate_finds_a_trunk_with_a_gap(state: RunState) -> None:
    train_whole(state, "a")
    broken = RunState()
    train_whole(broken, "a")
    broken.apply(landed("b"))
    broken.apply(ready("b"))
    broken.apply(started(broken, "b").model_copy(update={"first_step": 99}))
    with pytest.raises(AssertionError, match="begins where the trunk stands"):
        broken.validate()


def test_every_event_survives_the_ledger(state: RunState) -> None:
    train_whole(state, "a")
    told: list[events.Event] = [
        landed("a"),
        ready("a"),
        refused("a"),
        started(state, "a"),
        trained("a"),
        evaluated("a"),
        events.Opened(at=AT, spec={}),
        events.TookOver(at=AT, epoch=1, controller="c"),
        events.Measured(at=AT, stage="00-a", losses={}),
        events.Scored(at=AT, release="r", tasks=["t"], scores=[]),
    ]
    for event in told:
        assert events.decode(events.encode(event)) == event
