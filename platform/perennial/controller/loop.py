"""Run the controller: plan the next action, carry it out, record the result."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import NoReturn

from perennial import corpora
from perennial.causes import describe
from perennial.controller import evaluate_stage as judging
from perennial.controller.before_compute import absent_names
from perennial.controller.context import Workspace
from perennial.controller.failures import describe_failure
from perennial.controller.ingest_stage import ingest, landing
from perennial.controller.origin import begin_from_stored
from perennial.controller.release import carry_out
from perennial.controller.replay_share import measure_share
from perennial.controller.reuse_trial import adopt
from perennial.controller.train_stage import train_trunk
from perennial.controller.unattended.gate_search import leave_for_another_try, train_trial
from perennial.controller.unattended.measure_beside import BesideTraining, train_beside
from perennial.errors import (
    MISTAKES,
    Busy,
    InputError,
    LedgerError,
    StaleDecision,
    Superseded,
    Terminated,
)
from perennial.runs import release_policy as policy
from perennial.runs.actions import (
    Action,
    Outside,
    awaited_proxies,
    next_action,
    next_ingest,
    not_ingested,
    unapproved,
)
from perennial.runs.events import Releasing, Retried, Trained
from perennial.runs.job_factory import stage_job
from perennial.runs.ledger import now
from perennial.runs.stage_planner import (
    check_first_stage,
    decide_resumed,
    decide_stage,
    order_of,
    warn_of_start,
)
from perennial.runs.state import Stage
from perennial.runs.trunk.rewinding import resuming
from perennial.runs.trunk.unfinished import MEASURED
from perennial.runs.unattended.gate_response import respond_to_gate
from perennial.runs.unattended.limits import reached_limit
from perennial.schedules import from_dict
from perennial.training.checkpoint.manifest import committed_steps
from perennial.training.spikes.skips import read_skips


def advance(work: Workspace, *, reschedule: bool = False, wait: bool = True) -> int:
    """Run every pending action in order.

    Safe to repeat and to kill: what was begun is finished first, and nothing that is done is
    repeated (invariant I4). Writes nothing when there is nothing to do.

    Args:
        work: the run.
        reschedule: accept a schedule that differs from the one that the trunk was trained under.
        wait: wait out the retry delay of a corpus that failed instead of returning.

    Returns:
        The number of stages that were trained.

    Raises:
        Exception: the last failure of an action that is not retried, once the other actions ran.
    """
    controller = _perform_all(work, reschedule, wait=wait)
    work.workers.let_go()
    if controller.gave_up is not None:
        raise controller.gave_up
    return controller.trained


def _perform_all(work: Workspace, reschedule: bool, *, wait: bool) -> _Controller:
    """Run every pending action; return who did, with what was trained and what failed."""
    controller = _Controller(work, reschedule)
    while (action := controller.next()) is not None:
        if action.verb == "wait":
            if action.reason or not (wait and action.until):
                break
            _sleep_until(work, action)
            continue
        work.take_charge()
        controller.perform(action)
    work.leave_waiting(_why_waiting(work, action))
    return controller


def _why_waiting(work: Workspace, action: Action | None) -> list[str]:
    """Return why stages wait though their corpora are ready, given the next action."""
    waiting = unapproved(work.state, order_of(work.spec)) if not work.state.at_work else []
    reasons = [f"the stage of {name} waits for `accept`" for name in waiting]
    if action is not None and action.reason:
        reasons.insert(0, f"{action.subject} waits until {action.until}: {action.reason}")
    return reasons


@dataclass(frozen=True)
class Look:
    """One look of a watch.

    trained: stages that were trained.
    failure: what kept it from more; it is in the ledger, or the next look meets it again.
        Superseded and Busy: this process stands by until the other one ends.
    """

    trained: int = 0
    failure: Exception | None = None


def watch(
    work: Workspace,
    pause: Callable[[], object],
    report: Callable[[Look], None],
    *,
    reschedule: bool = False,
) -> NoReturn:
    """Look again and again, until the process is asked to end.

    What goes wrong with one corpus, or with the store for a while, does not end it. While another
    controller is in charge it stands by, and takes charge again when that one ends.

    Args:
        work: the run.
        pause: returns when it is time for the next look.
        report: called after each look.
        reschedule: as for `advance`.

    Raises:
        Terminated: on SIGTERM.
    """
    with _terminated_by_sigterm():
        while True:
            report(_look(work, reschedule))
            pause()


def _look(work: Workspace, reschedule: bool) -> Look:
    try:
        check_inbox(work)
        done = _perform_all(work, reschedule, wait=False)
    except (Superseded, Busy) as other:
        work.stand_down()
        return Look(failure=other)
    except Exception as failure:
        met = failure
        work.notify(lambda observer: observer.look_failed(work, met))
        return Look(failure=failure)
    return Look(done.trained) if done.gave_up is None else Look(failure=done.gave_up)


@contextmanager
def _terminated_by_sigterm() -> Iterator[None]:
    """Raise Terminated in the main thread on SIGTERM.

    While a job trains, its own handler lets the workers save first; once Ray runs, its handler
    raises SystemExit instead. Without either, Python's default would kill the process before
    MLflow has its last values.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread set handlers
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Terminated("stopped on request; the same command goes on from the last checkpoint")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ingest_landed(work: Workspace, *, wait: bool = False) -> None:
    """Tokenise everything that has landed, and train nothing; a stage may be training meanwhile.

    Args:
        work: the run.
        wait: wait out the retry delay of a corpus that failed instead of returning.

    Raises:
        Busy: as for `Workspace.ingesting`.
        Exception: the last failure of an ingestion that is not retried, once the others ran.
    """
    controller = _Controller(work, reschedule=False)
    while (action := controller.next_ingest()) is not None:
        if action.verb == "wait":
            if not wait:
                break
            _sleep_until(work, action)
            continue
        work.open_ledger()
        controller.perform(action)
    if controller.gave_up is not None:
        raise controller.gave_up


_WORDS = {"record-landing": "take up"}
"""actions whose name is none for a user"""


def todo(work: Workspace) -> list[str]:
    """Return the first action of `advance` and what waits behind it; reads only."""
    outside = _outside(work, [release.name for release in _due(work)])
    first = next_action(work.state, outside, order_of(work.spec))
    undecided = [f"no release by policy: {work.undecided}"] if work.undecided else []
    undecided += _why_waiting(work, None)
    if first is None or (first.verb == "wait" and not first.until):
        landed = {*work.state.corpora} - {*work.spec.stages.proxies}
        awaited = awaited_proxies(work.state, order_of(work.spec)) if landed else ()
        return [
            *(f"wait for {name}, which the first stage replays" for name in awaited),
            *absent_names(work.spec, {*work.state.corpora, *outside.inbox}),
            *undecided,
        ]
    waiting = [n for n in outside.inbox if n not in work.state.corpora and n != first.subject]
    line = f"{_WORDS.get(first.verb, first.verb)} {' and '.join((first.subject, *first.joined))}"
    if first.verb == "train":
        measured = [stage.name for stage in work.state.unfinished[:-1]]
        line += f" while {measured[0]} is measured" if measured else ""
    line += f" until {first.until}" if first.until else ""
    line += f": {first.reason}" if first.reason else ""
    return [line, *(f"then {name}" for name in waiting), *undecided]


def todo_ingest(work: Workspace) -> list[str]:
    """Return the corpora that `ingest_landed` would tokenise, in order; reads only."""
    known = not_ingested(work.state, order_of(work.spec))
    fresh = [name for name in _outside(work).inbox if name not in work.state.corpora]
    return [f"ingest {name}" for name in (*(corpus.name for corpus in known), *fresh)]


def check_inbox(work: Workspace) -> None:
    """Refuse what the next stage cannot be trained under, before anything is written."""
    work.check_unfinished()
    names = _outside(work).inbox
    if names and not work.state.stages:
        check_first_stage(work.spec, next(iter(work.state.corpora), names[0]))


def _outside(work: Workspace, due: Sequence[str] = ()) -> Outside:
    landed = [landed.name for landed in corpora.list_landed(work.inbox)]
    response, at = respond_to_gate(work.spec, work.state), now()
    answer = response.answer if response else None
    return Outside(landed, at, due, answer, reached_limit(work.spec, work.state, at))


def _due(work: Workspace) -> list[Releasing]:
    """Return the releases that are due under the run file's policy.

    Where that cannot be decided, none is due, and the reason is kept: the trunk goes on.
    """

    def checkpoints(stage: Stage) -> list[int]:
        return committed_steps(work.store, stage.folder)

    try:
        due = policy.due(work.spec, work.state, checkpoints, now())
    except (InputError, *MISTAKES) as undecidable:
        work.leave_undecided(describe(undecidable))
        return []
    work.leave_undecided("")
    return due


def _sleep_until(work: Workspace, action: Action) -> None:
    corpus = work.state.corpora[action.subject]
    left = datetime.fromisoformat(action.until) - datetime.now(UTC)
    seconds = max(0.0, left.total_seconds())
    work.log(
        f"{corpus.name} failed ({corpus.reason}); try {corpus.attempt + 1} of {corpus.attempts} "
        f"in {seconds:.0f} s"
    )
    time.sleep(seconds)


class _Controller:
    """Carries out actions for one call of `advance` or `ingest_landed`.

    trained: number of stages trained so far.
    gave_up: the last failure that is not retried; the other corpora continued.
    """

    def __init__(self, work: Workspace, reschedule: bool) -> None:
        self._work = work
        self._reschedule = reschedule
        self.trained = 0
        self.gave_up: Exception | None = None

    def next(self) -> Action | None:
        """Return the next action for the ledger and the inbox as they are now."""
        self._work.refresh()
        self._work.notify(lambda observer: observer.looked(self._work))
        due = [release.name for release in _due(self._work) if self._may_be_made(release.name)]
        outside = _outside(self._work, due)
        return next_action(self._work.state, outside, order_of(self._work.spec))

    def next_ingest(self) -> Action | None:
        """Return the next action of a process that tokenises and trains nothing."""
        self._work.refresh()
        self._work.notify(lambda observer: observer.looked(self._work))
        return next_ingest(self._work.state, _outside(self._work), order_of(self._work.spec))

    def perform(self, action: Action) -> None:
        """Carry out an action; return without it where the ledger changed meanwhile.

        Users hold, refuse and retry corpora at any time, so an action may no longer fit when its
        event is appended. The caller then plans again from the new state.
        """
        try:
            self._do(action)
        except StaleDecision as stale:
            self._work.log(f"ledger changed; re-planning: {stale}")

    def _do(self, action: Action) -> None:
        match action.verb:
            case "record-landing":
                self._land(action.subject)
            case "ingest":
                self._try(action.subject, lambda: ingest(self._work, action.subject))
            case "start":
                self._try(action.subject, lambda: self._start(action))
            case "train":
                self._try(action.subject, lambda: self._train(action.subject))
            case "evaluate":
                self._try(action.subject, lambda: judging.evaluate(self._work, action.subject))
            case "judge":
                self._try(action.subject, lambda: judging.judge(self._work, action.subject))
            case "release":
                self._release(action.subject)
            case "retry":
                self._work.decide(Retried(at=now(), corpus=action.subject, by_person=False))
            case "retry-with-more-replay" | "take-trial":
                leave_for_another_try(self._work)
            case "search":
                self._try(action.subject, lambda: train_trial(self._work, self._reschedule))

    def _try(self, name: str, carry_out_action: Callable[[], None]) -> None:
        """Carry out an action on a corpus; record its failure, and the time of the next try.

        Only failures of the corpus are recorded. SIGTERM and Ctrl-C are no Exception, and pass.
        """
        work = self._work
        try:
            carry_out_action()
        except (InputError, LedgerError):
            raise  # wrong input, or another process wrote first: not the corpus's failure
        except Exception as failure:
            work.refresh()  # a controller that lost its charge writes nothing
            failed = describe_failure(work, name, work.state.corpora[name].attempt, failure)
            work.record(failed)
            if failed.next_try is None:
                self.gave_up = failure

    def _may_be_made(self, release: str) -> bool:
        """Return whether a release has not failed in this process, or its next try is due."""
        setback = self._work.setbacks.get(release)
        if setback is None:
            return True
        again = setback.next_try
        return again is not None and datetime.fromisoformat(again) <= datetime.now(UTC)

    def _release(self, name: str) -> None:
        """Make a release that is due.

        A failure is kept in this process alone: the trunk continues, and another process may make
        the same release.
        """
        decided = next(release for release in _due(self._work) if release.name == name)
        work = self._work
        try:
            carry_out(work, decided)
        except StaleDecision:
            raise
        except Exception as failure:
            work.refresh()  # a controller that lost its charge stops here
            before = work.setbacks[name].attempt if name in work.setbacks else 0
            failed = describe_failure(work, name, before, failure)
            work.setbacks[name] = failed
            again = f"not before {failed.next_try}" if failed.next_try else "by `perennial release`"
            work.log(
                f"release {name} failed ({failed.reason}); the trunk continues; next try {again}"
            )
            if not isinstance(failure, Superseded):
                self.gave_up = failure  # the process that claimed the release makes it

    def _land(self, name: str) -> None:
        """Record a landing, and the others that the same listing of the inbox shows."""
        for landed in corpora.list_landed(self._work.inbox):
            if landed.name == name or landed.name not in self._work.state.corpora:
                self._work.record(landing(self._work, landed))

    def _start(self, action: Action) -> None:
        work = self._work
        # Planned without a tracking run first, so that MLflow has no run of wrong input.
        again = resuming(work.state)
        if again is None:
            new = (action.subject, *action.joined)
            decided = decide_stage(
                work.spec,
                work.state,
                action.subject,
                now(),
                "",
                self._reschedule,
                action.joined,
                measure_share(work, new),
            )
            if decided.share_decision is not None:
                work.log(f"{decided.stage} replays {decided.share_decision.describe()}")
        else:
            decided = decide_resumed(work.state, again, now())
        unreplayed = decided.mix.unreplayed
        if unreplayed:
            work.log(
                f"{decided.stage}: {unreplayed:,} sequences of the replay share are new data "
                "instead, because the earlier corpora are at their replay limit"
            )
        if not work.state.stages:
            for line in warn_of_start(work.spec, decided.mix, from_dict(decided.schedule)):
                work.log(f"notice: {line}")
        stage = Stage.decided(decided, after=len(work.state.stages))
        if action.joined:
            work.log(f"{stage.name} trains {', '.join(stage.corpora)} together")
        for source in decided.mix.new:
            if source.part is not None and source.sequences > source.extent:
                times = source.sequences / source.extent
                work.log(f"{stage.name} trains {source.name} {times:.1f} times")
        run_id = work.run_ids.stage_run_id(work, stage)
        work.decide(decided.model_copy(update={"tracking_run": run_id}))
        work.notify(lambda observer: observer.stage_started(work, stage))

    def _train(self, name: str) -> None:
        work = self._work
        stage = work.state.stage_of(name)
        if stage.start is None:
            begin_from_stored(work, stage)
        adopt(work, stage)
        work.use_ray()
        job = stage_job(work.spec, work.state, stage, work.manifests(stage.mix), work.fence())
        beside = self._measure_beside(stage)
        checkpoint = train_beside(work, job, beside) if beside else train_trunk(work, job)
        if checkpoint is None:
            work.log(f"{stage.name} left the trunk while it trained")
            return
        skipped = tuple(skip.step for skip in read_skips(work.store, stage.folder))
        work.record(
            Trained(
                at=now(),
                corpus=name,
                checkpoint=checkpoint,
                step=stage.last_step,
                skipped=skipped,
            )
        )
        work.notify(lambda observer: observer.stage_trained(work, stage))
        self.trained += 1

    def _measure_beside(self, stage: Stage) -> BesideTraining | None:
        """Begin to measure the stage before; None where it has passed, or waits for another try."""
        first = self._work.state.unfinished[0]
        if self._work.state.corpora[first.corpora[0]].state not in MEASURED:
            return None
        return BesideTraining(self._work, first.corpora[0], stage.name, self._try)
