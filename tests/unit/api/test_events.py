"""Callbacks on what the controller does to a run, with its own actions and no compute."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import perennial
from perennial.api.events import Callbacks, RunEvent
from perennial.config import RunSpec
from perennial.controller import evaluate_stage
from perennial.controller.context import Workspace
from perennial.controller.loop import _Controller
from perennial.errors import InputError
from perennial.runs.actions import Action
from tests.support.event_factory import WALK, event_of, released, releasing
from tests.support.tiny_run import tiny_run, write_run


@pytest.fixture
def heard() -> list[RunEvent]:
    return []


@pytest.fixture
def work(tmp_path: Path, heard: list[RunEvent]) -> Iterator[Workspace]:
    callbacks = Callbacks()
    callbacks.add("stage_started", heard.append)
    callbacks.add("evaluated", heard.append)
    callbacks.add("gated", heard.append)
    callbacks.add("released", heard.append)
    spec = RunSpec.model_validate(tiny_run(tmp_path) | {"gates": {"max_adaptation": 0.9}})
    opened = Workspace(spec, "run.yaml", [callbacks])
    opened.take_charge()
    yield opened
    opened.close()


def _walk(work: Workspace, *kinds: str) -> None:
    for kind in kinds:
        work.record(event_of(kind, work.state, "a"))


def test_a_stage_that_starts_is_heard_once_it_is_in_the_ledger(
    work: Workspace, heard: list[RunEvent]
) -> None:
    _walk(work, "landed", "ingesting", "ready")
    _Controller(work, reschedule=False)._start(Action("start", "a"))
    assert work.state.at_work is not None
    assert heard == [RunEvent("stage_started", "tiny", "00-a", ("a",), step=0)]


def test_a_stage_that_a_gate_stops_is_heard_with_its_verdicts(
    work: Workspace, heard: list[RunEvent]
) -> None:
    _walk(work, *WALK[: WALK.index("evaluated") + 1])
    evaluate_stage.judge(work, "a")
    (event,) = heard
    assert (event.name, event.subject, event.losses) == ("gated", "00-a", {"a": 1.0})
    (verdict,) = event.verdicts
    assert (verdict["gate"], verdict["holds"]) == ("max_adaptation", False)


def test_a_stage_and_a_release_are_heard_with_their_losses(
    work: Workspace, heard: list[RunEvent]
) -> None:
    _walk(work, *WALK)
    stage = work.state.stages[0]
    work.notify(lambda observer: observer.stage_evaluated(work, stage))
    claimed = releasing(work.state, "v1")
    work.record(claimed)
    made = released("v1")
    work.record(made)
    work.notify(lambda observer: observer.release_made(work, claimed, made))
    evaluated, release = heard
    assert (evaluated.name, evaluated.step, evaluated.losses) == ("evaluated", 10, {"a": 1.0})
    assert (release.name, release.subject, release.corpora) == ("released", "v1", ())
    assert release.folder == f"{work.store.url}/{made.folder}"


def test_a_callback_that_raises_changes_nothing_and_is_logged(
    work: Workspace, heard: list[RunEvent], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: RunEvent) -> None:
        raise ValueError("no such screen")

    (callbacks,) = (each for each in work.observers if isinstance(each, Callbacks))
    callbacks._callbacks["stage_started"].insert(0, fail)
    _walk(work, "landed", "ingesting", "ready")
    with caplog.at_level(logging.ERROR):
        _Controller(work, reschedule=False)._start(Action("start", "a"))
    assert [event.name for event in heard] == ["stage_started"]
    assert "no such screen" in caplog.text


def test_a_run_takes_callbacks_and_refuses_other_events(tmp_path: Path) -> None:
    run = perennial.open(write_run(tmp_path, tiny_run(tmp_path)))
    assert run.on("evaluated", print) is print
    run.on("gated", print)
    assert [type(observer) for observer in run._observers] == [Callbacks]
    with pytest.raises(InputError, match="its events: stage_started, evaluated") as error:
        run.on("trained", print)  # type: ignore[arg-type]
    assert error.value.code == "event-unknown"
