"""The pure controller: events in, instructions out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import get_args

import pytest

from perennial.errors import InvalidTransition, NewerSchema
from perennial.evaluation import HeldoutLoss, Sample
from perennial.evaluation.scores import Score
from perennial.runs import event_codec, events
from perennial.runs.actions import (
    Action,
    Order,
    Outside,
    awaited_proxies,
    next_action,
    next_ingest,
)
from perennial.runs.state import CorpusState, RunState
from perennial.runs.storage.store_events import Forked, LetGo, Mended, Moved, Upgraded
from perennial.runs.summary import matrix, references
from perennial.runs.transitions import TRANSITIONS
from tests.support.event_factory import (
    AT,
    TOKENS,
    WALK,
    event_of,
    imported,
    released,
    releasing,
    rewound,
    search_of,
    started,
    walk,
)

DOES = {
    "record-landing": ["landed"],
    "ingest": ["ingesting", "ready"],
    "start": ["started"],
    "train": ["trained"],
    "evaluate": ["evaluating", "evaluated"],
    "judge": ["passed"],
}


@pytest.fixture
def state() -> Iterator[RunState]:
    """A run that must hold together after every test."""
    run = RunState()
    yield run
    run.validate()


def _next(state: RunState, *inbox: str, order: Order | None = None) -> Action | None:
    return next_action(state, Outside(inbox), order)


def test_a_corpus_is_led_from_landing_through_its_gates(state: RunState) -> None:
    seen = []
    while (instruction := _next(state, "a")) is not None:
        seen.append(instruction.verb)
        walk(state, "a", *DOES[instruction.verb])
    assert seen == ["record-landing", "ingest", "start", "train", "evaluate", "judge"]
    assert state.corpora["a"].event_kinds == WALK


def test_stages_follow_in_the_order_of_landing(state: RunState) -> None:
    walk(state, "z")
    walk(state, "m", "landed")
    walk(state, "a", "landed")
    walk(state, "m", "ingesting", "ready")
    assert _next(state, "z", "m", "a") == Action("start", "m")


def test_a_priority_goes_before_the_order_of_landing(state: RunState) -> None:
    for name in ("a", "b", "c"):
        walk(state, name, "landed")
    order = Order(priority={"c": 2, "b": 1})
    assert _next(state, order=order) == Action("ingest", "c")


def test_a_named_order_waits_for_the_corpus_that_has_not_landed(state: RunState) -> None:
    order = Order(first=["x", "y"])
    walk(state, "y", "landed")
    walk(state, "other", "landed")
    assert _next(state, order=order) is None
    walk(state, "x", "landed")
    assert _next(state, order=order) == Action("ingest", "x")
    walk(state, "x", "refused")
    assert _next(state, order=order) == Action("ingest", "y")
    walk(state, "y", "held")
    assert _next(state, order=order) == Action("ingest", "other")


def test_what_is_only_measured_is_ingested_and_never_started(state: RunState) -> None:
    order = Order(only=["b"])
    for name in ("a", "b"):
        walk(state, name, "landed")
    assert _next(state, order=order) == Action("ingest", "a")
    walk(state, "a", "ingesting", "ready")
    assert _next(state, order=order) == Action("ingest", "b")
    walk(state, "b", "ingesting", "ready")
    assert _next(state, order=order) == Action("start", "b")
    walk(state, "b", *WALK[3:])
    assert _next(state, order=order) is None


def test_what_was_begun_is_finished_before_anything_new(state: RunState) -> None:
    walk(state, "a", "landed", "ingesting", "ready", "started")
    assert _next(state, "a", "b") == Action("train", "a")
    walk(state, "a", "trained")
    assert _next(state, "a", "b") == Action("evaluate", "a")
    walk(state, "a", "evaluating", "evaluated")
    assert _next(state, "a", "b") == Action("judge", "a")
    walk(state, "a", "passed")
    assert _next(state, "a", "b") == Action("record-landing", "b")


def test_a_release_that_is_due_goes_before_the_next_stage(state: RunState) -> None:
    walk(state, "a")
    walk(state, "b", "landed")
    outside = Outside(["a", "b"], due=["00-a-10"])
    assert next_action(state, outside) == Action("release", "00-a-10")


@pytest.mark.parametrize("kinds", [WALK[:4], WALK[:6], WALK[:7], (*WALK[:7], "gated")])
def test_ingestion_runs_ahead_of_training_over_everything_that_landed(
    state: RunState, kinds: tuple[str, ...]
) -> None:
    walk(state, "a", *kinds)
    outside, seen = Outside(["a", "b", "c", "d"]), []
    while (action := next_ingest(state, outside, Order(priority={"c": 1}))) is not None:
        seen.append((action.verb, action.subject))
        walk(state, action.subject, *DOES[action.verb])
    landed = [("record-landing", name) for name in "bcd"]
    assert seen == [*landed, ("ingest", "c"), ("ingest", "b"), ("ingest", "d")]


def test_ingestion_waits_for_no_corpus_and_skips_what_is_set_aside(state: RunState) -> None:
    for name in ("b", "held", "failing"):
        walk(state, name, "landed")
    walk(state, "held", "held")
    walk(state, "failing", "ingesting")
    later = "2026-01-01T00:01:00+00:00"
    state.apply(event_of("failed", state, "failing", later))
    order = Order(first=["not landed yet", "b"], only=["other"])
    assert next_ingest(state, Outside(now=AT), order) == Action("ingest", "b")
    walk(state, "b", "ingesting", "ready")
    assert next_ingest(state, Outside(now=AT), order) == Action("wait", "failing", later)
    assert next_ingest(state, Outside(now=later), order) == Action("retry", "failing")


def test_a_stage_that_failed_is_no_affair_of_ingestion(state: RunState) -> None:
    walk(state, "a", *WALK[:4])
    state.apply(event_of("failed", state, "a", "2026-01-01T00:01:00+00:00"))
    assert next_ingest(state, Outside()) is None


@pytest.mark.parametrize("aside", ["refused", "held"])
def test_a_corpus_that_is_set_aside_stands_in_nobodys_way(state: RunState, aside: str) -> None:
    walk(state, "bad", "landed")
    walk(state, "good", "landed")
    walk(state, "bad", aside)
    assert _next(state, "bad", "good") == Action("ingest", "good")
    walk(state, "bad", "retried")
    assert _next(state, "bad", "good") == Action("ingest", "bad")


def test_a_failed_ingest_waits_for_its_time_while_others_go_on(state: RunState) -> None:
    walk(state, "a", "landed", "ingesting")
    walk(state, "b", "landed")
    later = "2026-01-01T00:01:00+00:00"
    state.apply(event_of("failed", state, "a", later))
    assert next_action(state, Outside(now=AT)) == Action("ingest", "b")
    walk(state, "b", "refused")
    assert next_action(state, Outside(now=AT)) == Action("wait", "a", later)
    assert next_action(state, Outside(now=later)) == Action("retry", "a")
    state.apply(events.Retried(at=AT, corpus="a", by_person=False))
    assert next_action(state, Outside(now=later)) == Action("ingest", "a")
    walk(state, "a", "ingesting")
    state.apply(event_of("failed", state, "a"))
    assert (state.corpora["a"].attempt, next_action(state, Outside())) == (2, None)
    walk(state, "a", "retried")
    assert state.corpora["a"].attempt == 0


def test_a_ledger_whose_ingests_counted_their_failures_from_the_start_is_read(
    state: RunState,
) -> None:
    walk(state, "a", "landed", "ingesting")
    first = event_of("failed", state, "a", AT)
    for _ in range(3):
        state.apply(first)
        state.apply(events.Retried(at=AT, corpus="a", by_person=False))
        walk(state, "a", "ingesting")
    state.apply(event_of("failed", state, "a"))
    assert state.corpora["a"].attempt == 2


def test_a_failed_stage_stops_the_line_and_goes_on_where_it_was(state: RunState) -> None:
    walk(state, "a", "landed", "ingesting", "ready", "started", "failed")
    walk(state, "b", "landed")
    assert _next(state, "a", "b", "c") == Action("record-landing", "c")
    assert _next(state, "a", "b") == Action("wait", "a")
    walk(state, "a", "retried")
    assert _next(state, "a", "b") == Action("train", "a")
    assert state.corpora["a"].event_kinds.count("started") == 1


def test_a_gate_stops_the_line_until_a_person_decides(state: RunState) -> None:
    walk(state, "a")
    walk(state, "b", *WALK[:-1], "gated")
    walk(state, "c", "landed")
    assert _next(state, "a", "b", "c") == Action("wait", "b")
    assert _next(state, "a", "b", "c", "d") == Action("record-landing", "d")


def test_an_accepted_stage_is_what_the_next_one_starts_from(state: RunState) -> None:
    walk(state, "a")
    walk(state, "b", *WALK[:-1], "gated", "accepted")
    walk(state, "c", "landed", "ingesting", "ready", "started")
    assert [stage.name for stage in state.stages] == ["00-a", "01-b", "02-c"]
    assert state.stages[2].start == "c/b"
    assert state.accepted == {"01-b": "good enough"}


def test_a_refused_stage_leaves_the_trunk_and_the_next_starts_from_before(state: RunState) -> None:
    walk(state, "a")
    walk(state, "b", *WALK[:-1], "gated", "refused")
    walk(state, "c", "landed", "ingesting", "ready", "started")
    assert [stage.name for stage in state.stages] == ["00-a", "02-c"]
    assert (state.stages[1].start, state.stages[1].first_step) == ("c/a", 10)
    assert {source.corpus for source in state.stages[1].mix.sources} == {"a", "c"}
    assert [stage.name for stage in state.abandoned] == ["01-b"]
    assert state.ends["01-b"] == "c/b"  # everything is kept


def test_a_retried_stage_is_trained_anew_with_the_share_that_a_person_gave(
    state: RunState,
) -> None:
    walk(state, "a")
    walk(state, "b", *WALK[:-1], "gated")
    state.apply(events.Retried(at=AT, corpus="b", replay=0.5))
    assert _next(state, "a", "b") == Action("start", "b")
    assert state.corpora["b"].replay == 0.5
    walk(state, "b", *WALK[3:])
    assert [stage.name for stage in state.stages] == ["00-a", "02-b"]


def test_a_retired_corpus_leaves_replay_and_stays_in_the_lineage(state: RunState) -> None:
    walk(state, "a")
    walk(state, "b")
    walk(state, "a", "retired")
    walk(state, "c", "landed", "ingesting", "ready", "started")
    assert {source.corpus for source in state.stages[2].mix.sources} == {"b", "c"}
    assert [stage.name for stage in state.stages] == ["00-a", "01-b", "02-c"]


def test_i4_a_corpus_that_is_signalled_again_gives_no_second_stage(state: RunState) -> None:
    walk(state, "a")
    assert _next(state, "a", "a") is None
    with pytest.raises(InvalidTransition):
        walk(state, "a", "landed")
    assert len(state.stages) == 1


READY = ["landed", "ingesting", "ready"]
BATCH = Order(most_corpora=3)


def test_what_landed_at_once_is_ingested_and_then_one_stage(state: RunState) -> None:
    seen = []
    while (instruction := _next(state, "a", "b", order=BATCH)) is not None:
        seen.append((instruction.verb, instruction.subject, *instruction.joined))
        walk(state, instruction.subject, *DOES[instruction.verb], joined=instruction.joined)
    assert seen == [
        ("record-landing", "a"),
        ("record-landing", "b"),
        ("ingest", "a"),
        ("ingest", "b"),
        ("start", "a", "b"),
        ("train", "a"),
        ("evaluate", "a"),
        ("judge", "a"),
    ]
    (stage,) = state.stages
    assert (stage.name, stage.corpora) == ("00-a-and-1-more", ("a", "b"))
    assert state.corpora["a"].event_kinds == state.corpora["b"].event_kinds == WALK
    assert state.stage_of("b") == stage


def test_without_the_option_each_corpus_is_a_stage(state: RunState) -> None:
    walk(state, "a", *READY)
    walk(state, "b", *READY)
    assert _next(state) == Action("start", "a")


JOINED: list[tuple[Order, tuple[str, ...]]] = [
    (Order(most_corpora=4), ("b", "c", "d")),
    (Order(most_corpora=2), ("b",)),
    (Order(most_corpora=4, most_tokens=3 * TOKENS), ("b", "c")),
    (Order(most_corpora=4, most_tokens=TOKENS - 1), ()),
    # Nothing overtakes a corpus that keeps a stage of its own.
    (Order(most_corpora=4, alone=["c"]), ("b",)),
    (Order(most_corpora=4, alone=["a"]), ()),
    (Order(most_corpora=4, first=["a", "b"]), ()),
    (Order(most_corpora=4, priority={"a": 1, "c": 1}), ("c",)),
    (Order(most_corpora=4, only=["a", "c"]), ("c",)),
]


@pytest.mark.parametrize(("order", "joined"), JOINED)
def test_corpora_become_one_stage_within_the_bounds_and_in_their_order(
    state: RunState, order: Order, joined: tuple[str, ...]
) -> None:
    for name in ("a", "b", "c", "d"):
        walk(state, name, *READY)
    assert _next(state, order=order) == Action("start", "a", joined=joined)


@pytest.mark.parametrize("kind", ["held", "refused"])
def test_a_corpus_that_is_held_or_refused_joins_no_stage(state: RunState, kind: str) -> None:
    for name in ("a", "b", "c"):
        walk(state, name, *READY)
    walk(state, "b", kind)
    assert _next(state, order=BATCH) == Action("start", "a", joined=("c",))


def test_a_stage_does_not_wait_for_a_corpus_whose_ingest_is_tried_again_later(
    state: RunState,
) -> None:
    walk(state, "a", *READY)
    walk(state, "b", "landed", "ingesting")
    state.apply(event_of("failed", state, "b", next_try="2026-01-01T00:05:00+00:00"))
    assert next_action(state, Outside([], AT), BATCH) == Action("start", "a")


def test_a_corpus_that_lands_while_a_stage_is_at_work_waits_for_the_next(state: RunState) -> None:
    walk(state, "a", *READY)
    walk(state, "a", "started")
    walk(state, "b", *READY)
    assert _next(state, order=BATCH) == Action("train", "a")
    assert state.stages[0].corpora == ("a",)


def _merged(state: RunState, *kinds: str) -> None:
    for name in ("a", "b", "c"):
        walk(state, name, *READY)
    walk(state, "a", *WALK[3:-1], *kinds, joined=("b", "c"))


def test_of_a_gated_stage_one_is_refused_and_the_others_are_trained_without_it(
    state: RunState,
) -> None:
    _merged(state, "gated")
    walk(state, "b", "refused")
    assert {n: c.state for n, c in state.corpora.items()} == {
        "a": "ready",
        "b": "refused",
        "c": "ready",
    }
    assert ([s.name for s in state.abandoned], state.stages) == (["00-a-and-2-more"], [])
    assert _next(state, order=BATCH) == Action("start", "a", joined=("c",))


def test_a_retried_stage_is_the_same_corpora_again_whichever_of_them_is_named(
    state: RunState,
) -> None:
    _merged(state, "gated")
    walk(state, "d", *READY)
    state.apply(events.Retried(at=AT, corpus="c", replay=0.5))
    # What landed since has another share of replay, and so a stage of its own.
    assert _next(state, order=Order(most_corpora=9)) == Action("start", "a", joined=("b", "c"))


@pytest.mark.parametrize("named", ["a", "c"])
def test_a_gated_stage_is_accepted_by_any_of_its_corpora(state: RunState, named: str) -> None:
    _merged(state, "gated")
    assert state.gated == state.stages[0]
    walk(state, named, "accepted")
    assert {corpus.state for corpus in state.corpora.values()} == {"passed"}
    walk(state, "a", "retired")
    assert (state.retired, state.at_work) == (("a",), None)


def test_what_was_merged_stays_merged_under_another_run_file(state: RunState) -> None:
    for name in ("a", "b", "c"):
        walk(state, name, *READY)
    walk(state, "a", "started", joined=("b", "c"))
    for order in (Order(), Order(most_corpora=2), Order(first=["c"]), Order(alone=["b"])):
        assert _next(state, order=order) == Action("train", "a")
    assert state.stages[0].corpora == ("a", "b", "c")


def test_a_stage_of_several_fails_and_is_tried_again_as_one(state: RunState) -> None:
    for name in ("a", "b"):
        walk(state, name, *READY)
    walk(state, "a", "started", "failed", joined=("b",))
    assert {corpus.stands_at for corpus in state.corpora.values()} == {"training"}
    assert {corpus.attempt for corpus in state.corpora.values()} == {1}
    walk(state, "b", "retried")
    assert _next(state, order=BATCH) == Action("train", "a")


def test_a_stage_is_named_by_the_first_corpus_of_its_mix(state: RunState) -> None:
    walk(state, "a", *READY)
    walk(state, "b", *READY)
    other = started(state, "a").model_copy(update={"corpus": "b"})
    with pytest.raises(ValueError, match="the stage of b has a mix that trains a"):
        state.apply(other)


def test_an_event_of_the_first_schema_is_read_as_it_was_meant(state: RunState) -> None:
    walk(state, "a", *READY)
    now = started(state, "a")
    older = {k: v for k, v in now.mix.to_dict().items() if k != "corpora"} | {"corpus": "a"}
    told = json.loads(event_codec.encode(now)) | {"schema": 1, "mix": older}
    del told["before"]
    state.apply(event_codec.decode(json.dumps(told).encode()).event)
    assert state.stages[0].corpora == ("a",)


WALKS: dict[CorpusState, list[str]] = {
    "unknown": [],
    **{
        here: WALK[: n + 1]
        for n, here in enumerate(
            get_args(CorpusState)[1:8]  # landed .. evaluated
        )
    },
    "gated": [*WALK[:-1], "gated"],
    "passed": WALK,
    "held": ["landed", "held"],
    "failed": [*WALK[:4], "failed"],
    "refused": ["landed", "refused"],
    "retired": [*WALK, "retired"],
    "erased": [*WALK, "erased"],
}
KINDS = sorted({kind for _, kind in TRANSITIONS} - {"freed", "rewound", "resumed"})
"""Kinds of events; `freed` is what another corpus's refusal means for the rest of its stage, and
the others what taking the trunk back means for the corpora of its stages."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("here", get_args(CorpusState))
def test_only_the_table_moves_a_corpus(here: CorpusState, kind: str) -> None:
    """Any (state, event) pair that the table lacks raises with the corpus's history."""
    state = RunState()
    walk(state, "first")
    for walked in WALKS[here]:
        walk(state, "x", walked)
    if "x" in state.corpora:
        assert state.corpora["x"].state == here
    state.validate()
    if (here, kind) in TRANSITIONS:
        target = TRANSITIONS[here, kind]
        back = state.corpora["x"].back if here != "unknown" else "unknown"
        walk(state, "x", kind)
        assert state.corpora["x"].state == (back if target == "back" else target)
        state.validate()
        return
    before = _told(state)
    with pytest.raises(InvalidTransition) as caught:
        walk(state, "x", kind)
    assert " -> ".join(WALKS[here] or ["nothing yet"]) in str(caught.value)
    assert _told(state) == before


def _told(state: RunState) -> str:
    return repr(state)


def test_a_controller_takes_over_with_the_next_epoch_only(state: RunState) -> None:
    state.apply(events.TookOver(at=AT, epoch=1, controller="a"))
    with pytest.raises(InvalidTransition):
        state.apply(events.TookOver(at=AT, epoch=3, controller="b"))
    state.apply(events.TookOver(at=AT, epoch=2, controller="b"))
    assert (state.epoch, state.controller) == (2, "b")


def test_a_run_is_opened_once(state: RunState) -> None:
    state.apply(events.Opened(at=AT, spec={"name": "x"}))
    with pytest.raises(InvalidTransition):
        state.apply(events.Opened(at=AT, spec={"name": "y"}))


def test_a_release_is_claimed_anew_by_whoever_goes_on_and_made_once(state: RunState) -> None:
    walk(state, "a")
    state.apply(releasing(state, "r"))
    with pytest.raises(InvalidTransition, match="claim 1"):
        state.apply(releasing(RunState(stages=state.stages, ends=state.ends), "r"))
    state.apply(releasing(state, "r"))
    assert (state.releasing["r"].claim, state.release_state("r")) == (2, "releasing")
    state.apply(released("r"))
    assert state.release_state("r") == "released"
    for again in (released("r"), releasing(state, "r")):
        with pytest.raises(InvalidTransition):
            state.apply(again)


def test_cells_measured_later_join_the_stages_losses(state: RunState) -> None:
    walk(state, "a")
    cell = {"b": HeldoutLoss("b", 2.0, 1.0, 2, 10, 40, 0.1)}
    state.apply(events.Measured(at=AT, stage="00-a", losses=cell))
    assert set(state.losses["00-a"]) == {"a", "b"}
    with pytest.raises(InvalidTransition):
        state.apply(events.Measured(at=AT, stage="01-b", losses=cell))


def test_validate_finds_a_trunk_with_a_gap() -> None:
    broken = RunState()
    walk(broken, "a")
    walk(broken, "b", "landed", "ingesting", "ready")
    broken.apply(started(broken, "b").model_copy(update={"first_step": 99}))
    with pytest.raises(AssertionError, match="begins where the trunk stands"):
        broken.validate()


def test_every_event_survives_the_ledger_and_says_its_schema(state: RunState) -> None:
    walk(state, "a")
    told: list[events.Event] = [
        *(event_of(kind, state, "a") for kind in KINDS),
        events.Opened(at=AT, spec={}),
        events.TookOver(at=AT, epoch=1, controller="c"),
        events.Measured(at=AT, stage="00-a", losses={}),
        imported(),
        events.Scored(at=AT, release="r", tasks=["t"], scores=[]),
        releasing(state, "r"),
        released("r"),
        rewound(state.stages[0]),
        events.Promoted(at=AT, release="r", alias="production"),
        Moved(at=AT, to="s3://bucket/new"),
        Forked(at=AT, id="b", parent="a", stage="00-a", step=10, spec={}),
        LetGo(at=AT, folders=("branches/r",), size_bytes=1),
        Mended(at=AT, checkpoint="checkpoints/00-a/10", source=None, steps=10, files=("m",)),
        Upgraded(
            at=AT,
            checkpoint="checkpoints/00-a/10",
            source=None,
            steps=10,
            recorded={},
            installed={"torch": "2"},
            same=False,
            loss=0.1,
            largest=0.2,
            relative=0.3,
        ),
        *search_of(state),
    ]
    assert {event.kind for event in told} == {
        each.model_fields["kind"].default for each in get_args(events.Event)
    }
    for event in told:
        data = event_codec.encode(event)
        assert json.loads(data)["schema"] == event_codec.SCHEMA
        assert event_codec.decode(data) == event_codec.LedgerEntry(event, before="")


def test_a_base_is_imported_once_and_measured_again_as_corpora_land(state: RunState) -> None:
    state.apply(imported())
    with pytest.raises(InvalidTransition):
        state.check(imported())
    score: Score = {"asked": "t", "task": "t", "metric": "acc", "value": 0.5}
    first, more = HeldoutLoss("a", 1.0, 0.5, 2, 10, 40, 0.1), HeldoutLoss("a", 2.0, 1, 4, 20, 80, 0)
    sample = Sample("", "import", " os")
    for losses in ({"a": first, "b": first}, {"a": more}):
        state.apply(
            events.Measured(at=AT, stage="base", losses=losses, scores=[score], samples=[sample])
        )
    base = state.base
    assert base is not None
    assert base.losses == {"a": more, "b": first}, "the newest measurement of a corpus counts"
    assert (base.scores, base.samples) == ([score], [sample])
    assert matrix(state).origins == (("base", base.losses),)
    with pytest.raises(InvalidTransition):
        state.check(events.Measured(at=AT, stage="reference", losses={}))


def test_a_base_whose_loss_is_no_number_is_not_asked_for_ever(state: RunState) -> None:
    state.apply(imported())
    lost = HeldoutLoss("a", float("nan"), 0.5, 2, 10, 40, 0.1)
    state.apply(events.Measured(at=AT, stage="base", losses={"a": lost}))
    base = state.base
    assert base is not None
    assert (base.losses, base.not_finite) == ({}, ("a",))


def test_forgetting_is_paired_with_the_model_from_which_it_is_counted(state: RunState) -> None:
    loss = HeldoutLoss("a", 1.0, 0.5, 2, 10, 40, 0.1)
    state.apply(imported())
    state.apply(events.Measured(at=AT, stage="base", losses=dict.fromkeys("abc", loss)))
    walk(state, "a")
    walk(state, "b")
    first, second = state.stages
    assert references(state, first) == {"a": "c/a", "b": "models/base", "c": "models/base"}
    assert references(state, second) == {"a": "c/a", "b": "c/b", "c": "models/base"}
    assert [state.start_of(stage) for stage in state.stages] == ["models/base", "c/a"]


def test_the_first_stage_waits_for_what_it_replays_and_a_proxy_is_never_a_stage(
    state: RunState,
) -> None:
    order = Order(proxies=("web", "books"))
    walk(state, "a", "landed", "ingesting", "ready")
    assert _next(state, order=order) is None
    assert awaited_proxies(state, order) == ["web", "books"]
    walk(state, "web", "landed")
    assert _next(state, order=order) == Action("ingest", "web")
    walk(state, "web", "ingesting", "ready")
    walk(state, "books", "landed", "ingesting")
    state.apply(event_of("failed", state, "books"))
    assert _next(state, order=order) is None, "a user retries it, holds it or refuses it"
    state.apply(event_of("refused", state, "books"))
    assert _next(state, order=order) == Action("start", "a")
    walk(state, "a", *WALK[3:])
    assert _next(state, order=order) is None, "web has no stage"
    walk(state, "b", "landed", "ingesting", "ready")
    later = Order(proxies=("web", "to-come"))
    assert _next(state, order=later) == Action("start", "b"), "only the first stage waits"


def test_an_event_of_a_newer_schema_is_told_apart_from_a_broken_one() -> None:
    with pytest.raises(NewerSchema, match="its schema is 4, this version knows up to 3"):
        event_codec.decode(b'{"schema": 4, "kind": "from-the-future"}')
    before_schemas = b'{"kind": "took-over", "at": "", "epoch": 1, "controller": "c"}'
    assert isinstance(event_codec.decode(before_schemas).event, events.TookOver)
