"""Two stages that have not passed: the second trains while the first is measured (I4)."""

from __future__ import annotations

import pytest

from perennial.errors import InvalidTransition
from perennial.runs.actions import Action, Order, Outside, next_action
from perennial.runs.state import RunState
from perennial.runs.storage.store_events import Forked
from perennial.runs.trunk.rewinding import resuming
from tests.support.event_factory import AT, WALK, event_of, extended, rewound, walk

BESIDE = Order(beside=True)
UNTIL_READY, UNTIL_TRAINED = WALK[:3], WALK[:5]
MEASURED = ("evaluating", "evaluated")


@pytest.fixture
def state() -> RunState:
    """Corpus `a` is trained, `b` trains behind it, `c` waits."""
    state = RunState()
    for name in ("a", "b", "c"):
        walk(state, name, *UNTIL_READY)
    walk(state, "a", "started", "trained")
    walk(state, "b", "started")
    return state


def _names(state: RunState) -> list[str]:
    return [stage.name for stage in state.stages]


def _states(state: RunState) -> str:
    return " ".join(state.corpora[name].state for name in ("a", "b", "c"))


def _next(state: RunState, order: Order = BESIDE, **outside: object) -> Action | None:
    return next_action(state, Outside(**outside), order)  # type: ignore[arg-type]


def test_the_second_begins_at_the_end_of_the_first(state: RunState) -> None:
    first, second = state.stages
    assert second.start == state.ends[first.name]
    assert second.first_step == first.last_step
    assert state.unfinished == [first, second]
    assert state.at_work == first
    assert state.use.stages == 2, "the next plan counts both"
    assert state.passed_sums.use.stages == 0


def test_no_third_begins_and_the_second_is_not_measured_before_the_first_has_passed(
    state: RunState,
) -> None:
    with pytest.raises(InvalidTransition, match="behind 00-a, which is trained"):
        walk(state, "c", "started")
    walk(state, "b", "trained")
    walk(state, "a", *MEASURED)
    for corpus, kind in (("c", "started"), ("b", "evaluating")):
        with pytest.raises(InvalidTransition, match="behind 00-a, which is evaluated"):
            walk(state, corpus, kind)
    walk(state, "a", "passed")
    walk(state, "c", "started")
    walk(state, "b", *MEASURED, "passed")
    assert _states(state) == "passed passed training"
    state.validate()


def test_none_begins_behind_a_stage_that_trains() -> None:
    state = RunState()
    for name in ("a", "b"):
        walk(state, name, *UNTIL_READY)
    walk(state, "a", "started")
    with pytest.raises(InvalidTransition, match="which is training"):
        walk(state, "b", "started")
    walk(state, "a", "failed")
    with pytest.raises(InvalidTransition, match="which is failed"):
        walk(state, "b", "started")


@pytest.mark.parametrize("second", ["training", "failed", "trained"])
def test_a_broken_gate_abandons_the_stage_behind(state: RunState, second: str) -> None:
    if second != "training":
        walk(state, "b", second)
    walk(state, "a", *MEASURED, "gated")
    assert _names(state) == ["00-a"]
    assert [stage.name for stage in state.abandoned] == ["01-b"]
    assert _states(state) == "gated ready ready"
    assert state.corpora["b"].attempt == 0
    assert len(state.training["01-b"]) % 2 == 0, "it is not being trained"
    walk(state, "a", "accepted")
    walk(state, "b", "started")
    assert _names(state) == ["00-a", "02-b"], "under another name, with checkpoints of its own"
    assert state.stages[1].start == state.ends["00-a"]
    state.validate()


@pytest.mark.parametrize("kind", ["refused", "erased"])
def test_a_first_corpus_that_leaves_takes_the_stage_behind_with_it(
    state: RunState, kind: str
) -> None:
    if kind == "refused":
        walk(state, "a", "failed")
    walk(state, "a", kind)
    assert not state.stages
    assert [stage.name for stage in state.abandoned] == ["01-b", "00-a"]
    assert _states(state) == f"{kind} ready ready"
    assert state.lineage(state.abandoned[0]) == [state.abandoned[1]]
    state.validate()


@pytest.mark.parametrize("kind", ["refused", "erased"])
def test_a_second_corpus_that_leaves_leaves_the_first_where_it_was(
    state: RunState, kind: str
) -> None:
    walk(state, "b", "failed", kind)
    assert _names(state) == ["00-a"]
    walk(state, "a", *MEASURED, "passed")
    assert _states(state) == f"passed {kind} ready"
    state.validate()


def test_a_rewind_to_the_first_ones_end_holds_the_second(state: RunState) -> None:
    state.apply(rewound(state.stages[0]))
    assert _states(state) == "trained held ready"
    state.validate()


def test_the_plan_of_a_second_that_was_rewound_goes_on_unless_the_first_leaves(
    state: RunState,
) -> None:
    state.apply(rewound(state.stages[1], state.stages[1].first_step + 4))
    assert resuming(state) == state.abandoned[-1]
    assert _next(state) == Action("start", "b")
    walk(state, "a", *MEASURED, "gated")
    assert resuming(state) is not None, "the first one may be accepted"
    walk(state, "a", "retried")
    assert resuming(state) is None
    assert _states(state) == "ready ready ready"
    state.validate()


def test_a_fork_at_the_first_ones_end_leaves_the_second_behind(state: RunState) -> None:
    walk(state, "a", *MEASURED, "passed")
    forked = Forked(at=AT, id="f", parent="p", stage="00-a", step=10, spec={})
    state.apply(forked)
    assert _names(state) == ["00-a"]
    assert _states(state) == "passed held held"
    state.validate()
    with pytest.raises(InvalidTransition, match="not the last stage, 00-a"):
        state.apply(forked.model_copy(update={"stage": "01-b"}))


def test_the_next_stage_begins_while_this_one_is_to_be_measured() -> None:
    state = RunState()
    walk(state, "a", *UNTIL_TRAINED)
    assert _next(state) == Action("evaluate", "a"), "nothing may begin"
    assert _next(state, inbox=["a", "b"]) == Action("record-landing", "b")
    walk(state, "b", "landed")
    assert _next(state) == Action("ingest", "b")
    walk(state, "b", "ingesting", "ready")
    assert _next(state) == Action("start", "b")
    assert _next(state, Order()) == Action("evaluate", "a"), "the run file does not say so"
    walk(state, "a", "evaluating")
    assert _next(state) == Action("start", "b")
    walk(state, "a", "evaluated")
    assert _next(state) == Action("judge", "a"), "that takes no time"


@pytest.mark.parametrize("kinds", [(), MEASURED[:1], MEASURED, ("failed",)])
def test_what_was_begun_behind_goes_on_whatever_the_measurement_is_at(
    state: RunState, kinds: tuple[str, ...]
) -> None:
    for kind in kinds:
        walk(state, "a", kind)
    assert _next(state) == Action("train", "b")


def test_a_second_that_is_trained_or_failed_waits_for_the_first(state: RunState) -> None:
    walk(state, "a", "failed")
    walk(state, "b", "trained")
    assert _next(state) == Action("wait", "a"), "a user has to decide"
    walk(state, "a", "retried")
    assert _next(state) == Action("evaluate", "a")
    walk(state, "a", *MEASURED, "passed")
    assert _next(state) == Action("start", "c"), "beside the measurement of the second"


def test_nothing_goes_on_behind_a_gate_that_is_broken(state: RunState) -> None:
    walk(state, "a", *MEASURED, "gated")
    assert _next(state) == Action("wait", "a")
    assert _next(state, answer="retry-with-more-replay") == Action("retry-with-more-replay", "a")


def test_a_release_that_is_due_is_made_before_the_next_stage_passes(state: RunState) -> None:
    walk(state, "a", *MEASURED, "passed")
    assert _next(state, due=["r"]) == Action("train", "b"), "what was begun is finished first"
    walk(state, "b", "trained")
    assert _next(state, due=["r"]) == Action("release", "r"), "b's would be due in its place"


def test_entries_of_the_tokenizer_are_in_force_before_the_next_stage_begins() -> None:
    state = RunState()
    walk(state, "a", "landed", "ingesting")
    state.apply(extended(state, "a"))
    walk(state, "a", *WALK[2:5])
    walk(state, "b", *UNTIL_READY)
    assert _next(state) == Action("evaluate", "a")


def test_a_user_still_decides_about_other_corpora(state: RunState) -> None:
    for kind in ("held", "retried"):
        state.apply(event_of(kind, state, "c"))
    walk(state, "a", *MEASURED, "passed", "retired")
    assert _names(state) == ["00-a", "01-b"]
    assert state.unfinished == state.stages[1:]
    state.validate()
