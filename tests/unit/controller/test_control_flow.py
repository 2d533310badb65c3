"""Every class of exception at every catch site of the controller: who stops, who goes on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from perennial import errors
from perennial.config import RunSpec
from perennial.controller import evaluate_stage, loop, release
from perennial.controller.context import Workspace
from perennial.controller.loop import Look, advance, ingest_landed, watch
from perennial.controller.observer import RunObserver
from perennial.controller.train_stage import train
from perennial.errors import (
    MISTAKES,
    Altered,
    Busy,
    Damaged,
    InputError,
    InputMoved,
    InvalidTransition,
    LedgerError,
    LogGap,
    PerennialError,
    Spike,
    StaleDecision,
    Superseded,
    Terminated,
    TrainingStopped,
    Unsound,
    Vanished,
)
from perennial.evaluation import Answers
from perennial.runs.ledger import Ledger
from perennial.runs.stage_planner import decide_stage
from perennial.runs.state import RunState
from perennial.runs.worker_starts import read_starts
from perennial.training.job import Job
from tests.support.controllers import supersede
from tests.support.event_factory import AT, WALK, event_of
from tests.support.logged_lines import LoggedLines
from tests.support.tiny_run import tiny_run

_ARGUMENTS: dict[type[BaseException], tuple[Any, ...]] = {
    InputError: ("run.yaml", "field", "is wrong", "mend it"),
    InvalidTransition: ("a", "landed", "trained", ()),
    LogGap: ("ledger/7", "ledger/8"),
    Damaged: ("checkpoints/a", "is altered"),
    Vanished: ("checkpoints/a", "is gone"),
    Unsound: ([],),
    Spike: (3, "a leap", True),
    InputMoved: (0, "it grew"),
    Altered: ("corpora/a", "0a", "0b"),
}


def _tree(root: type[BaseException]) -> Iterator[type[BaseException]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child)


ENDS = (Terminated, KeyboardInterrupt, SystemExit)
CLASSES = [*ENDS, OSError, RuntimeError, ValueError, *_tree(PerennialError)]


def _raised(kind: type[BaseException]) -> BaseException:
    return kind(*_ARGUMENTS.get(kind, ("it broke",)))


@pytest.fixture(params=CLASSES, ids=lambda kind: kind.__name__)
def error(request: pytest.FixtureRequest) -> BaseException:
    return _raised(request.param)


@pytest.fixture
def lines() -> LoggedLines:
    return LoggedLines()


@pytest.fixture
def work(tmp_path: Path, lines: LoggedLines) -> Iterator[Workspace]:
    document = tiny_run(tmp_path)
    document["stages"] |= {"attempts": 2, "retry_after_seconds": 3600}
    document["schedule"] = {"kind": "cosine", "eta_max": 3e-3, "eta_min": 3e-4}
    opened = Workspace(RunSpec.model_validate(document), "run.yaml", [lines])
    opened.take_charge()
    yield opened
    opened.close()


def _write(work: Workspace, *kinds: str) -> None:
    for kind in kinds:
        if kind == "started":
            work.record(decide_stage(work.spec, work.state, "a", AT, "", reschedule=False))
        else:
            work.record(event_of(kind, work.state, "a"))


def _once(error: BaseException) -> Callable[..., Any]:
    """A stand-in that raises the error when it is called first, and ends the test's run then."""
    errors_left = [error]

    def stand_in(*_: object, **__: object) -> None:
        raise errors_left.pop() if errors_left else Terminated("called again")

    return stand_in


def _ledger(work: Workspace) -> RunState:
    return Ledger(work.store).read()


STAGE_SITES = {
    "ingest": (WALK[:1], "ingest"),
    "start": (WALK[:3], "decide_stage"),
    "train": (WALK[:4], "train_trunk"),
    "evaluate": (WALK[:5], "evaluate"),
    "judge": (WALK[:7], "judge"),
}


@pytest.fixture(params=STAGE_SITES)
def site(request: pytest.FixtureRequest, work: Workspace, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name in the loop of what is done next; `work` stands right before it."""
    kinds, name = STAGE_SITES[request.param]
    _write(work, *kinds)
    for unused in ("adopt", "stage_job"):
        monkeypatch.setattr(loop, unused, lambda *_: None)
    for unused in ("import_model", "use_ray", "manifests"):
        monkeypatch.setattr(Workspace, unused, lambda *_: None)
    return name


def _stand_in(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    owner: object = evaluate_stage if name in ("evaluate", "judge") else loop
    monkeypatch.setattr(owner, name, _once(error))


def test_an_action_on_a_corpus(
    work: Workspace,
    lines: LoggedLines,
    site: str,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _stand_in(monkeypatch, site, error)
    before = _ledger(work)
    if isinstance(error, StaleDecision):
        with pytest.raises(Terminated, match="called again"):
            advance(work, wait=False)
        assert [line for line in lines.lines if str(error) in line]
        assert _ledger(work) == before
    elif isinstance(error, (*ENDS, LedgerError, InputError)):
        with pytest.raises(type(error)) as raised:
            advance(work, wait=False)
        assert raised.value is error
        assert _ledger(work) == before
    else:
        hopeless = isinstance(error, (*MISTAKES, TrainingStopped))
        if hopeless:
            with pytest.raises(type(error)):
                advance(work, wait=False)
        else:
            assert advance(work, wait=False) == 0
        corpus = _ledger(work).corpora["a"]
        assert (corpus.state, corpus.attempt) == ("failed", 1)
        assert (corpus.next_try is None) == hopeless


def test_ingest_without_training(
    work: Workspace, lines: LoggedLines, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`perennial ingest` decides again, like `perennial run`, when a user refuses the corpus."""
    _write(work, "landed")
    monkeypatch.setattr(loop, "ingest", _once(error))
    if isinstance(error, StaleDecision):
        with pytest.raises(Terminated, match="called again"):
            ingest_landed(work)
        assert [line for line in lines.lines if str(error) in line]
    elif isinstance(error, (*ENDS, LedgerError, InputError)):
        with pytest.raises(type(error)):
            ingest_landed(work)
        assert _ledger(work).corpora["a"].state == "landed"
    else:
        if isinstance(error, (*MISTAKES, TrainingStopped)):
            with pytest.raises(type(error)):
                ingest_landed(work)
        else:
            ingest_landed(work)
        assert _ledger(work).corpora["a"].state == "failed"


def test_a_corpus_that_is_refused_while_it_is_ingested(
    work: Workspace, lines: LoggedLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(work, "landed", "ingesting")

    def refused_meanwhile(*_: object) -> None:
        other = Ledger(work.store)
        other.read()
        other.append(event_of("refused", other.state, "a"))
        work.record(event_of("ready", work.state, "a"))

    monkeypatch.setattr(loop, "ingest", refused_meanwhile)
    ingest_landed(work)
    assert _ledger(work).corpora["a"].state == "refused"
    assert [line for line in lines.lines if "a is refused" in line]


def test_tokenising(work: Workspace, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong input refuses the corpus, and nothing else does."""
    from perennial.controller import ingest_stage

    _write(work, "landed", "ingesting")
    monkeypatch.setattr(Workspace, "use_ray", lambda _: None)
    monkeypatch.setattr(ingest_stage, "_check_landed", lambda *_: None)
    monkeypatch.setattr(ingest_stage, "_tokenise", _once(error))
    if isinstance(error, InputError):
        ingest_stage.ingest(work, "a")
        corpus = _ledger(work).corpora["a"]
        assert (corpus.state, corpus.reason) == ("refused", str(error))
        return
    with pytest.raises(type(error)) as raised:
        ingest_stage.ingest(work, "a")
    assert raised.value is error
    assert _ledger(work).corpora["a"].state == "ingesting"


def test_another_try(
    work: Workspace, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(work, *WALK[:4])
    work.record(event_of("failed", work.state, "a", next_try="2026-01-01T00:00:00+00:00"))
    monkeypatch.setattr(Workspace, "decide", _once(error))
    expected = Terminated if isinstance(error, StaleDecision) else type(error)
    with pytest.raises(expected):
        advance(work, wait=False)
    assert _ledger(work).corpora["a"].state == "failed"


@pytest.fixture
def releases(work: Workspace) -> Workspace:
    """A run whose policy wants a release of its only stage."""
    policy = work.spec.release.model_copy(update={"policy": "each-stage"})
    work.spec = work.spec.model_copy(update={"release": policy})
    _write(work, *WALK)
    return work


def test_a_release_by_policy(
    releases: Workspace, lines: LoggedLines, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "carry_out", _once(error))
    if isinstance(error, (*ENDS, StaleDecision)):
        with pytest.raises(Terminated if isinstance(error, StaleDecision) else type(error)):
            advance(releases, wait=False)
        assert not releases.setbacks
        return
    if isinstance(error, Superseded):  # by whoever makes this very release
        assert advance(releases, wait=False) == 0
    else:
        with pytest.raises(type(error)) as raised:
            advance(releases, wait=False)
        assert raised.value is error
    (setback,) = releases.setbacks.values()
    hopeless = isinstance(error, (*MISTAKES, TrainingStopped))
    assert (setback.next_try is None) == hopeless
    assert [line for line in lines.lines if "the trunk continues" in line]
    assert _ledger(releases).corpora["a"].state == "passed"


def test_a_release_under_another_controller(
    releases: Workspace, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends it, a controller that is no longer in charge stops."""

    def superseded_meanwhile(*_: object) -> None:
        supersede(releases)
        raise error

    monkeypatch.setattr(loop, "carry_out", superseded_meanwhile)
    stops = type(error) if isinstance(error, ENDS) else Superseded
    with pytest.raises(stops):
        advance(releases, wait=False)


def test_a_watch(work: Workspace, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_perform_all", _once(error))
    looks: list[loop.Look] = []
    ends = isinstance(error, ENDS)
    with pytest.raises(type(error) if ends else Terminated):
        watch(work, lambda: None, looks.append)
    assert [look.failure for look in looks] == ([] if ends else [error])


def test_a_watch_stands_by_and_takes_charge_again_when_the_other_one_ends(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Workspace(work.spec, "run.yaml", take_over=True)
    looks: list[Look] = []
    acted: list[int] = []

    def perform_one(work: Workspace, *_: object, **_also: object) -> loop._Controller:
        """Stand for a run that always has something to do."""
        work.refresh()
        work.take_charge()
        acted.append(work.state.epoch)
        return loop._Controller(work, reschedule=False)

    def pause() -> None:
        if len(looks) == 1:
            other.take_charge()
        elif len(looks) == 3:
            other.close()
        elif len(looks) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_perform_all", perform_one)
    with pytest.raises(KeyboardInterrupt):
        watch(work, pause, looks.append)
    assert [type(look.failure) for look in looks] == [type(None), Superseded, Busy, type(None)]
    assert acted == [1, 3], "it did not insist against the one that took over"


class Failing(RunObserver):
    """Raises in every hook, as a drawing, MLflow or a terminal may."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def message(self, text: str) -> None:
        raise self.error

    job_began = job_progressed = job_ended = message  # type: ignore[assignment]
    stage_trained = stage_evaluated = matrix_filled = message  # type: ignore[assignment]
    looked = release_made = release_scored = message  # type: ignore[assignment]


@pytest.fixture
def watched(work: Workspace, lines: LoggedLines, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The run, with an observer that raises a ValueError until the test gives it another error."""
    for unused in ("import_model", "use_ray"):
        monkeypatch.setattr(Workspace, unused, lambda *_: None)
    work.observers = (Failing(ValueError("the figure has no axes")), *work.observers)
    return work


def test_an_observer(watched: Workspace, lines: LoggedLines, error: BaseException) -> None:
    watched.observers = (lines, Failing(error))
    for step in range(3):
        if isinstance(error, ENDS):
            with pytest.raises(type(error)):
                watched.log(f"step {step}")
        else:
            watched.log(f"step {step}")
    notices = [line for line in lines.lines if "notice" in line]
    assert len(notices) == (0 if isinstance(error, ENDS) else 1), "said once, not once a step"


def test_a_drawing_that_fails_leaves_the_stage_evaluated(
    watched: Workspace, lines: LoggedLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(watched, *WALK[:5])
    monkeypatch.setattr(evaluate_stage, "questions_at", lambda *_: None)
    monkeypatch.setattr(evaluate_stage, "examine", lambda *_: Answers({}, (), ()))
    assert advance(watched, wait=False) == 0
    assert _ledger(watched).corpora["a"].state == "passed"
    assert [line for line in lines.lines if "Failing failed (ValueError: the figure" in line]


def test_a_drawing_that_fails_leaves_the_release_made(
    watched: Workspace, lines: LoggedLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(watched, *WALK)
    monkeypatch.setattr(release, "_export", lambda *_: None)
    monkeypatch.setattr(release, "committed_steps", lambda *_: [watched.state.stages[0].last_step])
    monkeypatch.setattr(release, "examine", lambda *_: Answers({}, (), ()))
    made = release.release(watched)
    assert _ledger(watched).releases == [made]
    assert [line for line in lines.lines if "Failing failed (ValueError: the figure" in line]


def test_progress_reaches_the_other_observers_of_a_job(
    watched: Workspace, lines: LoggedLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is called from another thread: what escaped there would stop the news of the job."""
    progress = SimpleNamespace(
        started=[(0, 2)], rows=[], notices=["a checkpoint is late"], skipped=[], failed_saves=[]
    )

    def run_job(_: object, on_progress: Callable[[object], None]) -> str:
        def follow() -> None:
            for _ in range(3):
                on_progress(progress)

        thread = threading.Thread(target=follow)
        thread.start()
        thread.join()
        return "checkpoints/a/1"

    launcher = SimpleNamespace(run_job=run_job)
    monkeypatch.setitem(sys.modules, "perennial.training.launcher", launcher)
    job = SimpleNamespace(name="00-a", folder="checkpoints/00-a")
    assert train(watched, cast(Job, job)) == "checkpoints/a/1"
    assert lines.lines.count("00-a: a checkpoint is late") == 3
    assert [start.workers for start in read_starts(watched.store, job.folder)] == [2, 2, 2]
