"""An erased corpus in the state of a run: what leaves the trunk, and what can still happen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perennial.errors import InvalidTransition
from perennial.evaluation import HeldoutLoss, LossMatrix
from perennial.runs.actions import Action, Outside, next_action
from perennial.runs.state import RunState
from perennial.runs.trunk.containment import trained_corpora
from perennial.runs.trunk.rewinding import resuming
from tests.support.event_factory import AT, WALK, erased, event_of, rewound, started, walk


@pytest.fixture
def state() -> Iterator[RunState]:
    """A trunk of two stages, that must hold together after every test."""
    run = RunState()
    for corpus in ("a", "b"):
        walk(run, corpus)
    yield run
    run.validate()


def test_a_trained_corpus_is_replayed_no_more_and_its_stage_stays(state: RunState) -> None:
    state.apply(erased(state, "a"))
    assert [stage.name for stage in state.stages] == ["00-a", "01-b"]
    assert state.corpora["a"].state == "erased"
    walk(state, "c", *WALK[:3])
    state.apply(started(state, "c"))
    assert {source.corpus for source in state.stages[-1].mix.replayed} == {"b"}
    assert trained_corpora(state, state.stages[-1]) == ("b", "c")


@pytest.mark.parametrize("kind", ["unretired", "retried", "refused", "held", "retired"])
def test_nothing_can_happen_to_it_any_more(state: RunState, kind: str) -> None:
    state.apply(erased(state, "a"))
    with pytest.raises(InvalidTransition):
        state.apply(event_of(kind, state, "a"))


def test_an_unfinished_stage_leaves_the_trunk_and_frees_its_other_corpora(state: RunState) -> None:
    for corpus in ("c", "d"):
        walk(state, corpus, *WALK[:3])
    state.apply(started(state, "c", ("d",)))
    state.apply(erased(state, "d"))
    assert [stage.name for stage in state.stages] == ["00-a", "01-b"]
    assert [stage.name for stage in state.abandoned] == ["02-c-and-1-more"]
    assert {n: c.state for n, c in state.corpora.items()} == {
        "a": "passed", "b": "passed", "c": "ready", "d": "erased",
    }  # fmt: skip
    assert next_action(state, Outside((), AT)) == Action("start", "c")


def test_a_stage_that_goes_on_falls_with_its_corpus(state: RunState) -> None:
    state.apply(rewound(state.stages[1], 14))
    assert resuming(state) is not None
    state.apply(erased(state, "b"))
    assert resuming(state) is None
    assert next_action(state, Outside((), AT)) is None


def test_documents_change_no_state_and_are_counted(state: RunState) -> None:
    walk(state, "c", *WALK[:3])
    state.apply(started(state, "c"))
    state.apply(erased(state, "c", whole=False))
    assert state.corpora["c"].state == "training"
    assert state.corpora["c"].erasures == 1
    with pytest.raises(InvalidTransition):  # of a state that was not the last one
        state.apply(erased(state, "c", whole=False).model_copy(update={"number": 0}))
    state.apply(erased(state, "c", whole=False))
    assert state.corpora["c"].erasures == 2


@pytest.mark.parametrize("kinds", [(), ("landed", "ingesting")])
def test_what_is_not_there_or_is_being_tokenised_is_not_erased(
    state: RunState, kinds: tuple[str, ...]
) -> None:
    if kinds:
        walk(state, "z", *kinds)
    for whole in (True, False):
        event = erased(state, "z", whole=whole)
        with pytest.raises(InvalidTransition):
            state.apply(event)


def test_means_are_over_the_corpora_that_are_left() -> None:
    def loss(corpus: str, nats: float) -> HeldoutLoss:
        return HeldoutLoss(corpus, nats, nats, 2, 10, 40, 0.1)

    stages = (
        ("00-a", {"a": loss("a", 5.0)}),
        ("01-b", {"a": loss("a", 6.0), "b": loss("b", 4.0)}),
        ("02-c", {"b": loss("b", 4.5), "c": loss("c", 3.0)}),
    )
    whole, without = LossMatrix(stages), LossMatrix(stages, erased=frozenset({"a"}))
    assert whole.average_forgetting(2) is None, "a is not measured any more"
    assert without.average_forgetting(2) == pytest.approx(0.5)
    assert without.average_loss(2) == pytest.approx(3.75)
    assert without.adaptation(0) is None
