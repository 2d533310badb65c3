"""What the ledger says of a run's store: moved, forked, and without what was let go."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from perennial.config.search import Child
from perennial.errors import InvalidTransition
from perennial.runs import events
from perennial.runs.state import RunState
from perennial.runs.storage.space import KINDS, list_free, sum_below, sum_by_kind
from perennial.runs.storage.store_events import Forked, LetGo, Moved
from perennial.store import ObjectInfo
from tests.support.event_factory import (
    AT,
    WALK,
    event_of,
    released,
    releasing,
    rewound,
    search_of,
    started,
)


def _run(*corpora: str) -> RunState:
    """A run that trained these corpora, one after the other."""
    state = RunState()
    state.apply(events.Opened(at=AT, spec={"name": "one"}, id="first"))
    for name in corpora:
        for kind in WALK:
            state.apply(event_of(kind, state, name))
    return state


def _fork(state: RunState, stage: str) -> Forked:
    return Forked(at=AT, id="second", parent="first", stage=stage, step=10, spec={"name": "two"})


def test_nothing_follows_a_move() -> None:
    state = _run("a")
    state.apply(Moved(at=AT, to="/new"))
    assert (state.store.id, state.store.moved_to) == ("first", "/new")
    for event in (event_of("landed", state, "b"), Moved(at=AT, to="/other")):
        with pytest.raises(InvalidTransition, match="moved to /new"):
            state.apply(event)


def test_a_fork_leaves_behind_what_is_the_other_runs() -> None:
    state = _run("a", "b")
    state.apply(releasing(state, "r"))
    state.apply(released("r"))
    state.apply(events.Promoted(at=AT, release="r", alias="production"))
    for kind in WALK[: WALK.index("ready") + 1]:
        state.apply(event_of(kind, state, "waits"))
    state.apply(event_of("landed", state, "not-here"))
    state.apply(_fork(state, "01-b"))
    state.validate()
    assert (state.store.id, state.store.parent, state.spec) == ("second", "first", {"name": "two"})
    assert {name: corpus.state for name, corpus in state.corpora.items()} == {
        "a": "passed", "b": "passed", "waits": "held",
    }  # fmt: skip
    assert (state.releases, state.branches, state.aliases) == ([], {}, {})
    state.apply(event_of("landed", state, "not-here"))
    state.apply(event_of("retried", state, "waits"))
    state.apply(started(state, "waits"))
    state.validate()
    assert state.stages[-1].name == "02-waits"


def test_a_fork_is_of_the_last_stage_and_knows_what_left_the_trunk() -> None:
    state = _run("a", "b")
    with pytest.raises(InvalidTransition, match="not the last stage, 01-b"):
        state.apply(_fork(state, "00-a"))
    gone = state.ends["01-b"]
    state.apply(rewound(state.stages[0]))
    state.apply(_fork(state, "00-a"))
    state.validate()
    assert state.store.is_absent(gone)
    assert not state.store.is_absent(state.ends["00-a"])


def test_what_was_let_go_is_absent_with_all_that_is_in_it() -> None:
    state = _run("a")
    state.apply(LetGo(at=AT, folders=("branches/r",), size_bytes=1))
    assert [
        key for key in ("branches/r", "branches/r/4", "branches/r2", "branches")
        if state.store.is_absent(key)
    ] == ["branches/r", "branches/r/4"]  # fmt: skip


def _info(key: str, size: int = 1) -> ObjectInfo:
    return ObjectInfo(key, size, "e", datetime.now(UTC))


KEYS = [
    "branches/r/00000010/manifest.json",
    "checkpoints/00-a/00000010/manifest.json",
    "checkpoints/01-b/00000020/manifest.json",
    "corpora/a/manifest.json",
    "corpora/a/staging-1/piece",
    "corpora/b/staging-2/piece",
    "evaluations/c/a/a.parquet",
    "evaluations/checkpoints/09-x/00000001/a.parquet",
    "evaluations/checkpoints/09-x/00000001/tasks/t.json",
    "inbox/a/a.jsonl",
    "releases/r/model.safetensors",
]


def _free(state: RunState, *pinned: str) -> dict[str, list[str]]:
    return {kind: its for kind in KINDS if (its := list_free(state, kind, KEYS, pinned))}


def test_only_what_nothing_needs_is_free() -> None:
    state = _run("a", "b")
    kept = _free(state)
    assert kept == {
        "evaluations": ["evaluations/checkpoints/09-x/00000001"],
        "staged": ["corpora/a/staging-1"],
    }
    state.apply(releasing(state, "r"))
    assert _free(state) == kept, "it is being annealed"
    state.apply(released("r"))
    assert _free(state) == kept | {"branches": ["branches/r"]}
    assert _free(state, "branches/r/00000010") == kept, "a fork borrows of it"
    state.apply(rewound(state.stages[0]))
    assert _free(state)["left"] == ["checkpoints/01-b"]
    assert "left" not in _free(state, "checkpoints/01-b/00000020")


def test_a_trial_is_free_once_its_search_and_the_stage_are_done() -> None:
    state, keys = _run("a"), ["branches/tune-s/00000011/manifest.json"]
    for event in search_of(state):
        state.apply(event)
    begun = state.searches.trials["tune-s"].branched
    for kind in WALK:
        state.apply(event_of(kind, state, "z"))
    assert list_free(state, "trials", keys, ()) == [], "its search has no result"
    keys.append("searches/s/result.json")
    assert list_free(state, "trials", keys, ()) == ["branches/tune-s"]
    state.apply(begun.model_copy(update={"trial": "next"}))
    assert list_free(state, "trials", keys, ()) == [], "its search goes on"


def test_children_of_an_inheritune_search_are_its_result() -> None:
    """The file of the smallest one at parity names the checkpoint in `branches/`."""
    state = _run("a", "z")
    keys = ["branches/tune-s/00000011/manifest.json", "searches/s/result.json"]
    for event in search_of(state):
        child = isinstance(event, events.Branched)
        state.apply(event.model_copy(update={"point": Child(1, "inherited")}) if child else event)
    assert list_free(state, "trials", keys, ()) == []


def test_one_stray_measurement_takes_no_others_with_it() -> None:
    state = _run("a")
    kept = f"evaluations/{state.ends['00-a']}/a.parquet"
    strays = ["evaluations/notes.json", f"{kept.rpartition('/')[0].rpartition('/')[0]}/notes.json"]
    assert list_free(state, "evaluations", [kept, *strays], ()) == []


def test_a_stage_whose_plan_goes_on_is_not_free() -> None:
    state = _run("a", "b")
    state.apply(rewound(state.stages[1], state.stages[1].first_step + 3))
    assert "left" not in _free(state)
    state.apply(event_of("refused", state, "b"))
    assert _free(state)["left"] == ["checkpoints/01-b"]


def test_bytes_are_summed_by_kind_and_by_folder() -> None:
    objects = [_info("ledger/0", 1), _info("leases/head.json", 2), _info("moving.json", 4)]
    objects += [_info("corpora/a/x", 8), _info("corpora/b/x", 16), _info("aliases/p.json", 32)]
    assert sum_by_kind(objects) == {"releases": 32, "corpora": 24, "ledger": 7}
    assert sum_below(objects, ["corpora/a", "corpora", "none"]) == {
        "corpora/a": 8, "corpora": 24, "none": 0,
    }  # fmt: skip
