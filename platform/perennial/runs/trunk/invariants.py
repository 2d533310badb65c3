"""Invariants of the state of a run, after any sequence of events. Pure."""

from __future__ import annotations

from typing import get_args

from perennial.runs.transitions import ASIDE, FINISHED, ON_THE_TRUNK, CorpusState
from perennial.runs.trunk.trunk_state import TrunkState
from perennial.runs.trunk.unfinished import MEASURED


def validate(state: TrunkState) -> None:
    """Assert what must hold after any sequence of events."""
    on_trunk = [n for n, c in state.corpora.items() if c.stands_at in ON_THE_TRUNK]
    gone = {name for name, corpus in state.corpora.items() if corpus.state == "erased"}
    trained = [name for stage in state.stages for name in stage.corpora if name not in gone]
    assert sorted(on_trunk) == sorted(trained), "one corpus, one stage"
    running = {n for n in on_trunk if state.corpora[n].state not in FINISHED}
    at_work = [name for stage in state.unfinished for name in stage.corpora]
    assert running == {*at_work}, f"the last stages are at work, not {running}"
    for stage in state.unfinished:
        assert len({state.corpora[n].state for n in stage.corpora}) == 1, "a stage has one state"
    for stage in state.unfinished[:-1]:
        stands_at = state.corpora[stage.corpora[0]].stands_at
        assert stands_at in MEASURED, f"{stage.name} is measured beside the next one"
    _validate_trunk(state)
    for corpus in state.corpora.values():
        assert corpus.state in get_args(CorpusState)
        assert corpus.state not in ASIDE or corpus.back != "unknown", "there is a way back"
        assert not corpus.attempt or corpus.attempts, "attempts are of so many"
    names = [stage.name for stage in state.started_stages]
    assert len(set(names)) == len(names), "no two stages have one name"
    released = {release.name for release in state.releases}
    assert len(released) == len(state.releases), "a release is made once"
    assert released.isdisjoint(state.releasing), "a release is there or on its way"
    assert state.branches.keys() == released | state.releasing.keys(), "every release was planned"


def _validate_trunk(state: TrunkState) -> None:
    step = 0
    for index, stage in enumerate(state.stages):
        assert stage.first_step == step, f"{stage.name} begins where the trunk stands"
        assert stage.after == index, f"{stage.name} is the trunk's stage {index}"
        before = state.ends.get(state.stages[index - 1].name) if index else None
        assert stage.start == before, f"{stage.name} starts from the trunk's end"
        done = state.corpora[stage.corpora[0]].stands_at
        assert (stage.name in state.ends) == (done != "training"), "an end is a trained stage's"
        step = stage.last_step
    for stage in state.abandoned:
        followed = [earlier.name for earlier in state.lineage(stage)]
        assert len(followed) == stage.after, f"{stage.name} followed other stages than {followed}"
    numbers = sorted(int(stage.name.partition("-")[0]) for stage in state.started_stages)
    assert numbers == list(range(len(numbers))), "stages are numbered as they were started"
