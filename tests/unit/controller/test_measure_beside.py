"""The measurement of a stage beside the training of the next one: who writes, who stops."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from perennial.config import RunSpec
from perennial.controller import evaluate_stage as judging
from perennial.controller.context import Workspace
from perennial.controller.loop import _Controller
from perennial.controller.unattended import measure_beside
from perennial.controller.unattended.measure_beside import BesideTraining, train_beside
from perennial.errors import (
    InputError,
    StaleDecision,
    Superseded,
    Terminated,
    TrainingFailed,
)
from perennial.evaluation import Answers, HeldoutLoss, Questions
from perennial.evaluation.gates import Verdict
from perennial.runs.events import Evaluating
from perennial.runs.ledger import Ledger
from perennial.runs.state import RunState, Stage
from perennial.training.job import Job
from tests.support.controllers import supersede
from tests.support.event_factory import AT, WALK, event_of
from tests.support.tiny_run import tiny_run

LOSS = HeldoutLoss("a", 1.0, 0.5, 2, 10, 40, 0.1)
JOB = cast(Job, None)
"""no job: what trains is stood in for"""


class Measurement:
    """Stands for the Ray task that measures: it ends when the test says so, as the test says."""

    def __init__(self) -> None:
        self.is_made = threading.Event()
        self.broken: BaseException | None = None
        self.loading: list[float] = []

    def examine(self, _store: object, _end: str, asked: Questions) -> Answers:
        self.loading.append(asked.loading.cpus)
        assert self.is_made.wait(60)
        if self.broken is not None:
            raise self.broken
        return Answers({"a": LOSS}, (), ())

    def end(self, beside: BesideTraining, broken: BaseException | None = None) -> None:
        self.broken = broken
        self.is_made.set()
        if beside._thread is not None:
            beside._thread.join()


@pytest.fixture
def measurement(monkeypatch: pytest.MonkeyPatch) -> Measurement:
    made = Measurement()

    def prepare(work: Workspace, name: str) -> Stage:
        if work.state.corpora[name].state == "trained":
            work.record(Evaluating(at=AT, corpus=name))
        return work.state.stage_of(name)

    monkeypatch.setattr(judging, "prepare", prepare)
    monkeypatch.setattr(judging, "questions_at", lambda *_: Questions((), 32, 1))
    monkeypatch.setattr(measure_beside, "examine", made.examine)
    return made


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Workspace]:
    """A run whose stage `a` is trained, and `b` trains."""
    document = tiny_run(tmp_path)
    document["stages"] |= {"attempts": 2, "retry_after_seconds": 3600}
    opened = Workspace(RunSpec.model_validate(document), "run.yaml")
    opened.take_charge()
    for name in ("a", "b"):
        for kind in WALK[:3]:
            opened.record(event_of(kind, opened.state, name))
    for name, kind in (("a", "started"), ("a", "trained"), ("b", "started")):
        opened.record(event_of(kind, opened.state, name))
    yield opened
    opened.close()


@pytest.fixture
def controller(work: Workspace) -> _Controller:
    return _Controller(work, reschedule=False)


@pytest.fixture
def beside(work: Workspace, controller: _Controller, measurement: Measurement) -> BesideTraining:
    return BesideTraining(work, "a", "01-b", controller._try)


def _ledger(work: Workspace) -> RunState:
    return Ledger(work.store).read()


def _states(work: Workspace) -> tuple[str, str]:
    state = _ledger(work)
    return state.corpora["a"].state, state.corpora["b"].state


def _break_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Verdict("max_adaptation", "a", 1.0, 0.1, 0.9, False)
    monkeypatch.setattr(judging, "judge_gates", lambda *_: [broken])


def test_what_is_measured_is_written_between_two_looks_at_the_training(
    work: Workspace, beside: BesideTraining, measurement: Measurement
) -> None:
    for _ in range(3):
        assert beside.follow()
    assert _states(work) == ("evaluating", "training")
    measurement.end(beside)
    assert _states(work) == ("evaluating", "training"), "the thread writes nothing"
    assert beside.follow()
    assert _states(work) == ("passed", "training")
    assert _ledger(work).losses["00-a"] == {"a": LOSS}
    head = work.ledger.next
    assert beside.follow()
    assert beside.finish()
    assert work.ledger.next == head
    assert measurement.loading == [0.0], "the workers may reserve every CPU"


def test_a_measurement_that_was_written_before_a_kill_is_only_judged(
    work: Workspace, controller: _Controller, measurement: Measurement
) -> None:
    for kind in ("evaluating", "evaluated"):
        work.record(event_of(kind, work.state, "a"))
    beside = BesideTraining(work, "a", "01-b", controller._try)
    assert beside.follow()
    assert _states(work) == ("passed", "training")
    assert not measurement.loading


def test_a_broken_gate_ends_the_training_of_the_next_stage(
    work: Workspace,
    beside: BesideTraining,
    measurement: Measurement,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _break_gates(monkeypatch)
    assert beside.follow()
    measurement.end(beside)
    assert not beside.follow()
    assert not beside.finish()
    assert _states(work) == ("gated", "ready")


@pytest.mark.parametrize("error", [OSError("no memory"), ValueError("a mistake")])
def test_a_measurement_that_fails_is_that_stages_failure_alone(
    work: Workspace,
    controller: _Controller,
    beside: BesideTraining,
    measurement: Measurement,
    error: Exception,
) -> None:
    measurement.end(beside, error)
    assert beside.follow()
    assert beside.finish()
    assert _states(work) == ("failed", "training")
    corpus = _ledger(work).corpora["a"]
    assert (corpus.back, corpus.attempt) == ("evaluating", 1)
    hopeless = isinstance(error, ValueError)
    assert (corpus.next_try is None) is hopeless
    assert controller.gave_up is (error if hopeless else None)


def test_a_beginning_that_fails_is_that_stages_failure_alone(
    work: Workspace, controller: _Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: object) -> None:
        raise RuntimeError("the base cannot be measured")

    monkeypatch.setattr(judging, "prepare", prepare)
    beside = BesideTraining(work, "a", "01-b", controller._try)
    assert beside.follow()
    assert beside.finish()
    assert _states(work) == ("failed", "training")


def test_wrong_input_ends_the_training_and_is_told(
    work: Workspace, beside: BesideTraining, measurement: Measurement
) -> None:
    wrong = InputError("run.yaml", "evaluation", "is wrong", "mend it")
    measurement.end(beside, wrong)
    assert not beside.follow()
    with pytest.raises(InputError) as raised:
        beside.finish()
    assert raised.value is wrong
    assert _states(work) == ("evaluating", "training"), "the next start goes on with both"


def test_a_controller_that_is_superseded_writes_no_measurement(
    work: Workspace, beside: BesideTraining, measurement: Measurement
) -> None:
    supersede(work)
    measurement.end(beside)
    assert not beside.follow()
    with pytest.raises(Superseded):
        beside.finish()
    assert _states(work) == ("evaluating", "training")


@pytest.mark.parametrize("error", [StaleDecision("b was written"), OSError("the store is away")])
def test_a_verdict_that_cannot_be_written_now_is_written_at_a_later_look(
    work: Workspace,
    beside: BesideTraining,
    measurement: Measurement,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    measurement.end(beside)
    _fail(monkeypatch, "refresh", error, times=3)
    assert beside.follow()
    assert beside.follow()
    assert _states(work) == ("evaluating", "training")
    assert beside.follow()
    assert beside.follow()
    assert _states(work) == ("passed", "training")
    assert beside.finish()


def test_a_store_that_stays_away_is_told_once_the_stage_is_trained(
    work: Workspace,
    beside: BesideTraining,
    measurement: Measurement,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measurement.end(beside)
    _fail(monkeypatch, "refresh", OSError("the store is away"), times=9)
    assert beside.follow()
    with pytest.raises(OSError, match="away"):
        beside.finish()


def _fail(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, times: int) -> None:
    """Let a method of the workspace raise so many times."""
    left, real = [error] * times, getattr(Workspace, name)

    def stand_in(*given: Any) -> Any:
        if left:
            raise left.pop()
        return real(*given)

    monkeypatch.setattr(Workspace, name, stand_in)


def _training(
    monkeypatch: pytest.MonkeyPatch, meets: Callable[[Callable[[], bool]], str | None]
) -> None:
    monkeypatch.setattr(measure_beside, "train_trunk", lambda _work, _job, follow: meets(follow))


@pytest.mark.parametrize("is_broken", [False, True], ids=["gates hold", "a gate is broken"])
@pytest.mark.parametrize("fails", [False, True], ids=["trained", "failed"])
def test_a_stage_that_ends_first_waits_for_the_measurement_of_the_one_before(
    work: Workspace,
    beside: BesideTraining,
    measurement: Measurement,
    monkeypatch: pytest.MonkeyPatch,
    is_broken: bool,
    fails: bool,
) -> None:
    if is_broken:
        _break_gates(monkeypatch)

    def meets(follow: Callable[[], bool]) -> str:
        assert follow()
        threading.Timer(0.2, measurement.is_made.set).start()
        if fails:
            raise TrainingFailed("the workers died")
        return "checkpoints/01-b/20"

    _training(monkeypatch, meets)
    if fails and not is_broken:
        with pytest.raises(TrainingFailed):
            train_beside(work, JOB, beside)
    else:
        expected = None if is_broken else "checkpoints/01-b/20"
        assert train_beside(work, JOB, beside) == expected
    assert _states(work) == (("gated", "ready") if is_broken else ("passed", "training"))


def test_a_stage_that_was_ended_by_a_gate_has_no_end(
    work: Workspace,
    beside: BesideTraining,
    measurement: Measurement,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _break_gates(monkeypatch)
    measurement.end(beside)

    def meets(follow: Callable[[], bool]) -> None:
        assert not follow()

    _training(monkeypatch, meets)
    assert train_beside(work, JOB, beside) is None


@pytest.mark.parametrize("error", [Superseded("another one"), Terminated("asked to end")])
def test_who_ends_waits_for_no_measurement(
    work: Workspace,
    beside: BesideTraining,
    measurement: Measurement,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def meets(_: Callable[[], bool]) -> None:
        raise error

    _training(monkeypatch, meets)
    with pytest.raises(type(error)):
        train_beside(work, JOB, beside)
    assert _states(work) == ("evaluating", "training")
    measurement.end(beside)
