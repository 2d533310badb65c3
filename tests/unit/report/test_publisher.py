"""Pictures and MLflow follow a run in a thread: no stage waits, and their order is the run's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.report import publish
from perennial.report.publish import Publisher
from tests.support.event_factory import WALK, event_of
from tests.support.logged_lines import LoggedLines
from tests.support.tiny_run import tiny_run


class Drawing:
    """Stands for what is drawn and logged: it waits for the test, and keeps what was asked for."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.begun = threading.Event()
        self.asked: list[str] = []
        self.fails = False

    def track(self, run: Any, _: object) -> None:
        self.begun.set()
        assert self.may_go_on.wait(60)
        if self.fails:
            raise ValueError("the figure has no axes")
        self.asked.append(f"drawn with {len(run.state.losses)}")

    def track_stage(self, _run: object, _tracker: object, stage: Any) -> None:
        self.asked.append(stage.name)


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Drawing:
    made = Drawing()
    monkeypatch.setattr(publish, "track", made.track)
    monkeypatch.setattr(publish, "track_stage", made.track_stage)
    return made


@pytest.fixture
def work(tmp_path: Path, drawing: Drawing) -> Iterator[Workspace]:
    """A run that a publisher follows, with MLflow stood in for."""
    ended = SimpleNamespace(finish=lambda: drawing.asked.append("ended"))
    tracker = SimpleNamespace(
        incomplete=False,
        parent_run=lambda: ended,
        child=lambda name, **_: SimpleNamespace(
            finish=lambda how="FINISHED": drawing.asked.append(f"{how}: {name}")
        ),
    )
    mlflow = SimpleNamespace(tracker=lambda _: tracker)
    spec = RunSpec.model_validate(tiny_run(tmp_path))
    opened = Workspace(spec, "run.yaml", [LoggedLines(), Publisher(cast(Any, mlflow))])
    opened.take_charge()
    yield opened
    drawing.may_go_on.set()
    opened.close()


def _evaluate(work: Workspace, corpus: str) -> None:
    for kind in WALK[:7]:
        work.record(event_of(kind, work.state, corpus))
    stage = work.state.stage_of(corpus)
    work.notify(lambda observer: observer.stage_evaluated(work, stage))
    work.record(event_of("passed", work.state, corpus))


def test_a_run_goes_on_while_it_is_drawn_and_waits_at_its_end(
    work: Workspace, drawing: Drawing
) -> None:
    _evaluate(work, "a")
    assert drawing.begun.wait(60)
    _evaluate(work, "b")
    assert work.state.corpora["b"].state == "passed"
    assert not [line for line in drawing.asked if line.startswith("drawn")]
    drawing.may_go_on.set()
    work.close()
    assert drawing.asked[-1] == "drawn with 2"
    assert [name for name in drawing.asked if name[0] in "0F"] == [
        "00-a",
        "FINISHED: 00-a",
        "01-b",
        "FINISHED: 01-b",
    ]


def test_what_happens_while_it_is_drawn_is_drawn_together(
    work: Workspace, drawing: Drawing
) -> None:
    _evaluate(work, "a")
    assert drawing.begun.wait(60)
    for corpus in ("b", "c", "d"):
        _evaluate(work, corpus)
    drawing.may_go_on.set()
    work.close()
    drawn = [line for line in drawing.asked if line.startswith("drawn")]
    assert len(drawn) == 2
    assert drawn[-1] == "drawn with 4"


def test_a_drawing_that_fails_is_told_once_and_the_next_is_made(
    work: Workspace, drawing: Drawing
) -> None:
    drawing.fails = True
    drawing.may_go_on.set()
    for corpus in ("a", "b"):
        _evaluate(work, corpus)
    work.notify(lambda observer: observer.closed())
    (lines,) = (o.lines for o in work.observers if isinstance(o, LoggedLines))
    assert lines.count("notice: Publisher failed (ValueError: the figure has no axes)") == 1
    drawing.fails = False
    _evaluate(work, "c")
    work.close()
    assert drawing.asked[-1] == "drawn with 3"


def test_the_run_of_a_stage_that_was_abandoned_is_shown_as_killed(
    work: Workspace, drawing: Drawing
) -> None:
    for corpus, kinds in (("a", WALK[:5]), ("b", WALK[:4]), ("a", [*WALK[5:7], "gated"])):
        for kind in kinds:
            work.record(event_of(kind, work.state, corpus))
    (stage,) = work.state.stages
    work.notify(lambda observer: observer.stage_gated(work, stage))
    assert drawing.asked == ["KILLED: 01-b"]


def test_the_lineages_run_ends_at_once_where_no_stage_trains(
    work: Workspace, drawing: Drawing
) -> None:
    _evaluate(work, "a")
    assert "ended" in drawing.asked, "what trains next resumes it, before all is drawn"
    drawing.asked.clear()
    for corpus in ("b", "c"):
        for kind in WALK[:3]:
            work.record(event_of(kind, work.state, corpus))
    for kind in WALK[3:5]:
        work.record(event_of(kind, work.state, "b"))
    work.record(event_of("started", work.state, "c"))
    for kind in WALK[5:7]:
        work.record(event_of(kind, work.state, "b"))
    stage = work.state.stage_of("b")
    work.notify(lambda observer: observer.stage_evaluated(work, stage))
    assert "ended" not in drawing.asked, "c trains beside"


def test_a_command_that_finds_its_work_done_draws_what_a_killed_process_did_not(
    work: Workspace, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log_all(run: Any, _: object) -> None:
        drawing.asked.append(f"all of {len(run.state.losses)}")

    monkeypatch.setattr(publish, "_log_all", log_all)
    for kind in WALK[:7]:
        work.record(event_of(kind, work.state, "a"))
    work.notify(lambda observer: observer.found_done(work))
    work.close()
    assert drawing.asked.count("all of 1") == 1
