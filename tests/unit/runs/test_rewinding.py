"""The trunk taken back to a checkpoint: what leaves it, what goes on, and what stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perennial.config import RunSpec
from perennial.errors import InvalidTransition
from perennial.mixture import TrunkUse
from perennial.runs.actions import Action, Outside, next_action
from perennial.runs.ledger import Ledger
from perennial.runs.stage_planner import decide_stage
from perennial.runs.state import RunState
from perennial.runs.summary import references
from perennial.runs.trunk.rewinding import resuming
from perennial.store import open_store
from perennial.training.checkpoint.manifest import folder_of
from tests.support.event_factory import AT, WALK, event_of, rewound, started, walk
from tests.support.long_run import LongRun, long_spec, stage_events

ALL = Outside((), AT)


@pytest.fixture
def state() -> Iterator[RunState]:
    """A trunk of three stages, that must hold together after every test."""
    run = RunState()
    for corpus in ("a", "b", "c"):
        walk(run, corpus)
    yield run
    run.validate()


def test_later_stages_leave_the_trunk_and_their_corpora_wait(state: RunState) -> None:
    state.apply(rewound(state.stages[0]))
    assert [stage.name for stage in state.stages] == ["00-a"]
    assert [stage.name for stage in state.abandoned] == ["02-c", "01-b"]
    assert {name: c.state for name, c in state.corpora.items()} == {
        "a": "passed", "b": "held", "c": "held",
    }  # fmt: skip
    assert state.corpora["b"].reason == "it diverged"
    assert set(state.losses) == {"00-a", "01-b", "02-c"}, "what was measured stays"
    assert next_action(state, ALL) is None
    assert resuming(state) is None


def test_what_left_is_trained_again_from_there_or_refused(state: RunState) -> None:
    state.apply(rewound(state.stages[0]))
    state.apply(event_of("refused", state, "b"))
    state.apply(event_of("retried", state, "c"))
    assert next_action(state, ALL) == Action("start", "c")
    walk(state, "c", *WALK[3:])
    stage = state.stages[-1]
    assert (stage.name, stage.start, stage.first_step) == ("03-c", "c/a", 10)
    assert {source.corpus for source in stage.mix.replayed} == {"a"}


def test_a_stage_goes_on_as_it_was_planned_from_its_middle(state: RunState) -> None:
    former = state.stages[1]
    state.apply(rewound(former, 14))
    assert {name: c.state for name, c in state.corpora.items()} == {
        "a": "passed", "b": "ready", "c": "held",
    }  # fmt: skip
    # A corpus that waited longer, or comes first in order, does not come between.
    walk(state, "z", "landed", "ingesting", "ready")
    assert next_action(state, ALL) == Action("start", "b")
    state.apply(started(state, "b"))
    stage = state.stages[-1]
    assert (stage.name, stage.resumes) == ("03-b", folder_of(former.folder, 14))
    for part in ("first_step", "start", "mix", "schedule", "optimizer", "settings"):
        assert getattr(stage, part) == getattr(former, part)
    walk(state, "b", *WALK[4:])
    assert next_action(state, ALL) == Action("start", "z")


def test_a_stage_of_several_corpora_goes_on_as_one(state: RunState) -> None:
    for corpus in ("d", "e"):
        walk(state, corpus, *WALK[:3])
    walk(state, "d", *WALK[3:], joined=("e",))
    state.apply(rewound(state.stages[-1], 35))
    assert next_action(state, ALL) == Action("start", "d", joined=("e",))
    state.apply(started(state, "d"))
    assert state.stages[-1].corpora == ("d", "e")


def test_a_start_that_fails_is_tried_again_before_anything_else(state: RunState) -> None:
    walk(state, "z", "landed", "ingesting", "ready")
    state.apply(rewound(state.stages[1], 14))
    state.apply(event_of("failed", state, "b", "2026-01-01T00:01:00+00:00"))
    assert next_action(state, ALL) == Action("wait", "b", "2026-01-01T00:01:00+00:00")
    assert next_action(state, Outside((), "2026-01-01T00:02:00+00:00")) == Action("retry", "b")


@pytest.mark.parametrize("kind", ["held", "refused"])
def test_a_corpus_that_is_put_aside_takes_its_plan_with_it(state: RunState, kind: str) -> None:
    state.apply(rewound(state.stages[1], 14))
    for decision in (kind, "retried"):
        state.apply(event_of(decision, state, "b"))
    state.apply(started(state, "b"))
    assert state.stages[-1].resumes is None


def test_the_trunk_is_taken_back_twice(state: RunState) -> None:
    """From a place where a stage would go on, to another step of it, and to before it."""
    state.apply(rewound(state.stages[2], 24))
    state.apply(rewound(state.abandoned[-1], 22))
    assert state.resumption is not None
    assert state.resumption.step == 22
    assert state.corpora["c"].state == "ready"
    state.apply(rewound(state.stages[0]))
    assert state.resumption is None
    assert [state.corpora[name].state for name in "abc"] == ["passed", "held", "held"]
    assert [stage.name for stage in state.abandoned] == ["02-c", "01-b"]


@pytest.mark.parametrize(
    ("stage", "step", "what"),
    [(0, 99, "steps 1 to 10"), (1, 10, "steps 11 to 20"), (1, 0, "steps 11 to 20")],
)
def test_a_step_that_is_not_of_the_stage_changes_nothing(
    state: RunState, stage: int, step: int, what: str
) -> None:
    before = repr(state)
    with pytest.raises(InvalidTransition, match=what):
        state.apply(rewound(state.stages[stage], step))
    assert repr(state) == before


def test_neither_a_stage_that_left_nor_an_end_that_is_not_trained_is_gone_back_to(
    state: RunState,
) -> None:
    walk(state, "d", *WALK[:4])
    with pytest.raises(InvalidTransition, match="steps 31 to 40"):
        state.apply(rewound(state.stages[3]))
    state.apply(rewound(state.stages[0]))
    with pytest.raises(InvalidTransition, match="no stage of the trunk"):
        state.apply(rewound(state.abandoned[0], 34))


def test_a_stage_at_work_or_stopped_by_a_gate_leaves_too(state: RunState) -> None:
    walk(state, "d", *WALK[:4], "failed")
    state.apply(rewound(state.stages[2]))
    assert (state.corpora["d"].state, state.corpora["d"].back) == ("held", "ready")
    assert state.corpora["d"].attempt == 0
    state.apply(event_of("retried", state, "d"))
    walk(state, "d", *WALK[3:-1], "gated")
    state.apply(rewound(state.stages[1]))
    assert [state.corpora[name].state for name in "cd"] == ["held", "held"]
    assert state.at_work is None


def test_a_stage_that_left_keeps_the_history_that_it_had(state: RunState) -> None:
    """Whatever took its place: its plan, its numbers and its entries are checked by that."""
    walk(state, "d", "landed", "ingesting", "extended", "ready", *WALK[3:])
    walk(state, "e")
    told = {
        stage.name: (
            [its.name for its in state.lineage(stage)],
            state.history_of(stage),
            state.seen(stage, stage.first_step),
            TrunkUse.of(state.history_of(stage)),
            state.extension_of(stage),
            references(state, stage),
        )
        for stage in state.stages
    }
    assert told["04-e"][4] is not None
    state.apply(rewound(state.stages[0]))
    for corpus in ("e", "c"):
        state.apply(event_of("retried", state, corpus))
        walk(state, corpus, *WALK[3:])
    for stage in state.started_stages[:1] + state.abandoned:
        before, history, seen, use, extension, compared = told[stage.name]
        assert [its.name for its in state.lineage(stage)] == before
        assert state.history_of(stage) == history
        assert state.seen(stage, stage.first_step) == seen
        assert state.use_before(stage) == use
        assert state.extension_of(stage) == extension
        assert references(state, stage) == compared
    assert state.extension is None, "a stage that left takes the entries that it brought"
    assert state.use == TrunkUse.of(state.history)


def test_a_snapshot_after_a_rewind_reads_as_its_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perennial.runs.snapshots.EVERY_EVENTS", 1)
    run = LongRun(tmp_path, cells=2).grow(4)
    former = run.ledger.state.stages[2]
    run.ledger.append(rewound(former, former.first_step + 1))
    at_rest = Ledger(open_store(run.spec.store)).read()
    assert at_rest == run.ledger.state
    run.ledger.append(started(run.ledger.state, former.corpora[0]))
    read = Ledger(open_store(run.spec.store)).read()
    assert read == run.ledger.state
    assert (read.resumption, read.stages[-1].resumes) == (None, f"{former.folder}/00000025")
    assert [its.name for its in read.lineage(read.abandoned[0])][-1] == "02-corpus-00002"


def test_a_trunk_that_was_taken_back_grows_as_one_that_was_never_longer(tmp_path: Path) -> None:
    spec = long_spec(tmp_path)
    plain, taken_back = _grown(spec, 3), _grown(spec, 3)
    for event in stage_events(spec, taken_back):
        taken_back.apply(event)
    taken_back.apply(rewound(taken_back.stages[2]))
    for state in (plain, taken_back):
        walk(state, "new", *WALK[:3])
        state.apply(decide_stage(spec, state, "new", AT, "", reschedule=False))
    one, other = plain.stages[-1], taken_back.stages[-1]
    assert (one.mix, one.start, one.schedule) == (other.mix, other.start, other.schedule)


def _grown(spec: RunSpec, stages: int) -> RunState:
    state = RunState()
    for _ in range(stages):
        for event in stage_events(spec, state):
            state.apply(event)
    return state
