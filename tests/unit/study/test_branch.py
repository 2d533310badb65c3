"""The stages that a run may begin with because another one trained them as it would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec
from perennial.runs.events import (
    Event,
    Held,
    Opened,
    Passed,
    Ready,
    Released,
    Retried,
    Started,
    TookOver,
)
from perennial.runs.stage_planner import decide_release, decide_stage
from perennial.runs.state import RunState
from perennial.study.branch import shared_events
from tests.support.event_factory import AT, event_of
from tests.support.tiny_run import tiny_run

NAMES = ("first", "second", "third")


def spec_of(folder: Path, **changes: Any) -> RunSpec:
    """The tiny run with sections laid over its own."""
    document = tiny_run(folder)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(document.get(name), dict)
        document[name] = {**document[name], **value} if both else value
    return RunSpec.model_validate(document)


def story_of(spec: RunSpec) -> list[Event]:
    """The events of a run of three stages, with a release between the first two."""
    state, story = RunState(), list[Event]()

    def add(event: Event) -> None:
        state.apply(event)
        story.append(event)

    add(Opened(at=AT, spec=spec.model_dump(mode="json")))
    add(TookOver(at=AT, epoch=1, controller="test:1"))
    for name in NAMES:
        for kind in ("landed", "ingesting"):
            add(event_of(kind, state, name))
        add(Ready(at=AT, corpus=name, sequences=400, tokens=400 * 128, digest="d"))
        add(decide_stage(spec, state, name, AT, "", reschedule=False))
        for kind in ("trained", "evaluating", "evaluated", "passed"):
            add(event_of(kind, state, name))
        if name == "first":
            decided = decide_release(spec, state, state.stages[0], 12, None, AT)
            add(decided)
            assert decided.schedule is not None
            add(
                Released(
                    at=AT,
                    name=decided.name,
                    source=decided.source,
                    folder=f"releases/{decided.name}",
                    steps=4,
                    schedule=decided.schedule,
                    losses={},
                    samples=[],
                )
            )
    return story


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({}, 3),
        ({"name": "another", "store": "elsewhere"}, 3),
        ({"release": {"anneal": "6 steps", "sample_tokens": 0}}, 3),
        ({"replay": {"share": 0.5}}, 1),
        ({"replay": {"share": 0.25, "weighting": "uniform"}}, 2),
        ({"stages": {"budget": "12 steps", "optimizer": "keep"}}, 1),
        ({"stages": {"budget": "12 steps", "corpora": {"third": {"replay": 0.1}}}}, 2),
        ({"stages": {"budget": "13 steps"}}, 0),
        ({"stages": {"budget": "12 steps", "order": ["first"]}}, 0),
        ({"schedule": {"eta_max": 2e-3}}, 0),
        ({"seed": 4}, 0),
        ({"corpora": {"sequence_length": 128, "holdout": 0.2}}, 0),
        ({"evaluation": {"documents": 6}}, 0),
    ],
)
def test_stages_are_shared_up_to_the_first_that_would_be_trained_otherwise(
    tmp_path: Path, changes: dict[str, Any], stages: int
) -> None:
    story = story_of(spec_of(tmp_path))
    mine = spec_of(tmp_path, **changes)
    shared = shared_events(mine, story)
    kinds = [event.kind for event in shared.values()]
    assert kinds.count("started") == kinds.count("passed") == stages
    assert not {"releasing", "released"} & {*kinds}
    if not stages:
        assert not shared
        return
    assert isinstance(list(shared.values())[-1], Passed)
    state = RunState()
    for event in shared.values():
        state.apply(event)
    assert state.spec == mine.model_dump(mode="json") | {"store": "."}
    for stage in state.stages:
        its = next(e for e in story if isinstance(e, Started) and e.stage == stage.name)
        assert stage.mix.sources == its.mix.sources
        assert stage.mix.replay.share == mine.replay.share
        assert dict(stage.schedule) == dict(its.schedule)


def test_nothing_behind_a_users_decision_is_shared(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    story = story_of(spec)
    second = next(i for i, e in enumerate(story) if e.kind == "ingesting" and e.corpus == "second")
    held: list[Event] = [Held(at=AT, corpus="second"), Retried(at=AT, corpus="second")]
    shared = shared_events(spec, [*story[:second], *held, *story[second:]])
    assert [event.kind for event in shared.values()].count("started") == 1


def test_an_end_that_is_not_judged_yet_is_not_shared(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    story = story_of(spec)
    last = max(i for i, event in enumerate(story) if event.kind == "passed")
    shared = shared_events(spec, story[:last])
    assert [event.kind for event in shared.values()].count("started") == 2
