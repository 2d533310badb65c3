"""Run a study: every run is a process of its own, as many side by side as the machine has cores.

The stores of the runs are the study's only state, so it may be killed and repeated at any time. A
process that ends takes no other with it: each has a Ray runtime of its own.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from textwrap import shorten
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, Literal

from perennial.controller.ingest_stage import usable
from perennial.errors import Terminated
from perennial.runs.entities import names_in
from perennial.store.stored_json import parse_json
from perennial.study.arm_process import ArmTask
from perennial.study.plan import (
    PlannedRun,
    Study,
    decide,
    list_inbox,
    plan,
    read_state,
)
from perennial.study.record import check_record, read_spent

if TYPE_CHECKING:
    from perennial.runs.state import RunState

Log = Callable[[str], None]
State = Literal["done", "failed", "not run"]
_POLL_SECONDS = 1.0
_PLAN_SECONDS = 5.0
_LINE_SECONDS = 20.0
_STDERR_BYTES = 4000
_SHOWN_LETTERS = 60


@dataclass(frozen=True)
class RunEnding:
    """The end of a run in a study; `reason` says why it is not done."""

    state: State
    reason: str = ""


@dataclass(frozen=True)
class StudyPace:
    """The time that runs take.

    spent: seconds so far, all runs together.
    tokens_per_second: of a run with all its work; None where nothing is known.
    source: of that number.
    """

    spent: float
    tokens_per_second: float | None
    source: str

    def seconds(self, planned: PlannedRun) -> float | None:
        """Return the time that a run takes from its beginning; None where that is not known."""
        if self.tokens_per_second is None or planned.unknown:
            return None
        return planned.tokens / self.tokens_per_second


@dataclass
class _Child:
    """A process that carries out a run."""

    planned: PlannedRun
    process: subprocess.Popen[str]
    errors: IO[bytes]
    at: str = "starting"
    failure: str = ""
    done: bool = False

    def ask_to_end(self) -> None:
        """Close the process's stdin, at which it ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        """Give back what belongs to a process that has ended."""
        self.ask_to_end()
        self.errors.close()


def default_jobs(study: Study) -> int:
    """Return how many runs fit side by side on the cores of this machine."""
    workers = max(run.spec.training.workers.min for run in study.runs)
    return max(1, (os.cpu_count() or 1) // workers)


def is_done(planned: PlannedRun, state: RunState, inbox: Sequence[str]) -> bool:
    """Return whether nothing is missing of a run. Pure.

    Args:
        planned: the run.
        state: its state.
        inbox: the corpora that have landed.
    """
    if planned.kept is not None:
        return True
    if planned.unknown or not state.stages or len(state.stages) < len(planned.stages):
        return False
    waiting = names_in(state.corpora.values(), "unknown", "landed", "ingesting")
    if waiting or any(name not in state.corpora for name in inbox):
        return False
    if not all(state.has_passed(stage) for stage in state.stages):
        return False
    ready = {*usable(state)}
    for stage in state.stages:
        drawn = state.draws.get(stage.name) is not None
        if not drawn and not ready <= {
            *state.losses[stage.name],
            *state.not_finite.get(stage.name, ()),
        }:
            return False
    made = {release.name for release in state.releases}
    decided = [decide(state, asked) for asked in planned.run.releases]
    return all(release is not None and release.name in made for release in decided)


def measure_pace(study: Study, planned: Sequence[PlannedRun], inbox: Sequence[str]) -> StudyPace:
    """Return what runs took so far; from the study file before one is done."""
    here = [p for p in planned if p.kept is None]
    spent = {p.run.name: read_spent(p.run.store) for p in here}
    done = [p for p in here if spent[p.run.name] and is_done(p, read_state(p.run), inbox)]
    seconds = sum(spent[p.run.name] for p in done)
    total = sum(spent.values()) + sum(p.kept.seconds for p in planned if p.kept is not None)
    if seconds:
        speed = sum(p.tokens for p in done) / seconds
        return StudyPace(total, speed, f"measured over {len(done)} runs")
    return StudyPace(total, study.spec.tokens_per_second, "the study file")


def run_study(
    study: Study, jobs: int, log: Log, on_ending: Callable[[Mapping[str, RunEnding]], object]
) -> dict[str, RunEnding]:
    """Carry out what is missing of a study. Safe to repeat and kill.

    Args:
        study: the study.
        jobs: most runs side by side.
        log: shows a line.
        on_ending: called whenever a run has ended, with how every run stands; what is left is
            not run yet.

    Returns:
        How every run ended, by its name.

    Raises:
        InputError: nothing has landed, or an arm was begun under other settings.
        Terminated: on SIGTERM, after the runs stored a checkpoint.
    """
    for run in study.runs:
        check_record(run.store, study.where, run.arm, run.settings)
    with _terminable():
        return _Laboratory(study, jobs, log, on_ending).run()


@contextmanager
def _terminable() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread set handlers
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Terminated("stopped on request; the same command goes on where the runs stopped")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class _Laboratory:
    """Starts the processes of a study's runs, and follows them."""

    study: Study
    jobs: int
    log: Log
    on_ending: Callable[[Mapping[str, RunEnding]], object]
    statuses: dict[str, RunEnding] = field(default_factory=dict)
    _children: dict[str, _Child] = field(default_factory=dict)
    _messages: queue.Queue[tuple[str, dict[str, Any] | None]] = field(default_factory=queue.Queue)
    _planned_at: float = -_PLAN_SECONDS
    _said: float = 0.0
    _spent_elsewhere: float = 0.0

    def run(self) -> dict[str, RunEnding]:
        """Return how every run ended."""
        try:
            while len(self.statuses) < len(self.study.runs):
                if len(self._children) < self.jobs:
                    self._start_next()
                self._follow()
        finally:
            self._end_all()
        return self.statuses

    def _start_next(self) -> None:
        """Start what may start now; note what is done and what does not fit the budget."""
        if time.monotonic() - self._planned_at < _PLAN_SECONDS:
            return
        self._planned_at = time.monotonic()
        planned, inbox = plan(self.study), list(list_inbox(self.study))
        pace = measure_pace(self.study, planned, inbox)
        self._spent_elsewhere = sum(its.kept.seconds for its in planned if its.kept is not None)
        for its in planned:
            name = its.run.name
            if name in self.statuses or name in self._children:
                continue
            if is_done(its, read_state(its.run), inbox):
                self.statuses[name] = RunEnding("done")
            elif len(self._children) < self.jobs and not self._waits(its, planned, inbox):
                self._start_if_it_fits(its, planned, pace)

    def _waits(self, its: PlannedRun, planned: Sequence[PlannedRun], inbox: Sequence[str]) -> bool:
        """Return whether a run's donor or lender has yet to make what it takes from them."""
        runs = {p.run.name: p.run for p in planned}
        open_runs = {name for name in runs if name not in self.statuses}
        if its.donor in open_runs:
            state = read_state(runs[its.donor])
            if sum(map(state.has_passed, state.stages)) < its.shared:
                return True
        if its.lender in open_runs:
            return not {*inbox} <= {*read_state(runs[its.lender]).corpora} or bool(
                names_in(read_state(runs[its.lender]).corpora.values(), "landed", "ingesting")
            )
        return False

    def _start_if_it_fits(
        self, its: PlannedRun, planned: Sequence[PlannedRun], pace: StudyPace
    ) -> None:
        budget = self.study.spec.budget
        needed = pace.seconds(its)
        if budget is not None and needed is not None:
            left = budget.total_seconds() - pace.spent + read_spent(its.run.store)
            for child in self._children.values():
                spent = read_spent(child.planned.run.store)
                left -= max(0.0, (pace.seconds(child.planned) or 0.0) - spent)
            if needed > left:
                reason = f"{needed / 3600:.2f} h are more than the {max(0, left) / 3600:.2f} h left"
                self.statuses[its.run.name] = RunEnding("not run", reason)
                self.log(f"{its.run.name} is not run: {reason} of the budget")
                return
        stores = {p.run.name: p.run.spec.store for p in planned}
        self._start(its, stores)

    def _start(self, its: PlannedRun, stores: Mapping[str, str]) -> None:
        task = ArmTask(
            where=self.study.where,
            study=self.study.spec.name,
            digest=self.study.digest,
            run=its.run,
            donor=(its.donor, stores[its.donor]) if its.donor else None,
            lender=stores[its.lender] if its.lender else None,
        )
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        process = subprocess.Popen(
            [sys.executable, "-m", "perennial.study.arm_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which ends the others
        )
        assert process.stdin is not None
        process.stdin.write(task.to_json() + "\n")
        process.stdin.flush()
        name = its.run.name
        self._children[name] = _Child(its, process, errors)
        threading.Thread(target=self._read, args=(name, process), daemon=True).start()
        self.log(f"{name}: begins" if not read_spent(its.run.store) else f"{name}: goes on")

    def _read(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                # One that was killed may end inside a line.
                with suppress(ValueError):
                    self._messages.put((name, parse_json(line)))
        process.wait()
        self._messages.put((name, None))

    def _follow(self) -> None:
        """Take in messages for a while."""
        try:
            name, message = self._messages.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            message, name = {}, ""
        if message is None:
            self._note_end(self._children.pop(name))
        elif "message" in message:
            self._children[name].at = shorten(message["message"], _SHOWN_LETTERS, placeholder="...")
            self.log(f"{name}: {message['message']}")
        elif name:
            child = self._children[name]
            child.failure = message.get("failed", child.failure)
            child.done = message.get("done", child.done)
            if "job" in message:
                child.at = f"{message['job']} step {message['step']:,}/{message['steps']:,}"
        if self._children and time.monotonic() - self._said > _LINE_SECONDS:
            self._said = time.monotonic()
            self.log(self._line())

    def _note_end(self, child: _Child) -> None:
        name = child.planned.run.name
        if child.done and self._has_ended(name):
            self.statuses[name] = RunEnding("done")
            self.log(f"{name}: done, {read_spent(child.planned.run.store) / 60:.1f} min")
        else:
            url = child.planned.run.spec.store
            waits = f"its corpora wait, see `perennial status {url}`"
            reason = waits if child.done else child.failure or self._last_words(child)
            self.statuses[name] = RunEnding("failed", reason)
            self.log(f"{name}: failed: {reason}")
        child.close()
        self._planned_at = -_PLAN_SECONDS
        still = dict.fromkeys(
            (run.name for run in self.study.runs), RunEnding("not run", "not yet")
        )
        self.on_ending(still | self.statuses)

    def _has_ended(self, name: str) -> bool:
        """Return whether a run whose process found nothing more to do is done."""
        its = next(planned for planned in plan(self.study) if planned.run.name == name)
        return is_done(its, read_state(its.run), list(list_inbox(self.study)))

    @staticmethod
    def _last_words(child: _Child) -> str:
        """Return the last line that a process wrote to stderr, or how it ended."""
        size = child.errors.seek(0, os.SEEK_END)
        child.errors.seek(max(0, size - _STDERR_BYTES))
        lines = child.errors.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        ended = f"its process ended with code {child.process.returncode}"
        return f"{ended} ({said[-1]})" if said else ended

    def _line(self) -> str:
        done = sum(status.state == "done" for status in self.statuses.values())
        running = ", ".join(f"{name} ({child.at})" for name, child in self._children.items())
        spent = (self._spent_elsewhere + sum(read_spent(r.store) for r in self.study.runs)) / 3600
        budget = self.study.spec.budget
        of = "" if budget is None else f" of {budget.total_seconds() / 3600:g}"
        return f"{done} of {len(self.study.runs)} runs done; {running}; {spent:.2f}{of} h"

    def _end_all(self) -> None:
        """Ask the processes that are left to end, and wait for them."""
        for child in self._children.values():
            child.ask_to_end()
        for child in self._children.values():
            child.process.wait()
            child.close()


def preview(study: Study, jobs: int) -> dict[str, Any]:
    """Return what `run_study` would do, as a JSON-ready document; reads only.

    Args:
        study: the study.
        jobs: most runs side by side.
    """
    planned, inbox = plan(study), list(list_inbox(study))
    pace = measure_pace(study, planned, inbox)
    runs = []
    for its in planned:
        check_record(its.run.store, study.where, its.run.arm, its.run.settings)
        done = is_done(its, read_state(its.run), inbox)
        seconds = 0.0 if done else pace.seconds(its)
        runs.append(
            {
                "run": its.run.name,
                "store": its.run.spec.store,
                "state": "kept" if its.kept else "done" if done else "missing",
                "donor": its.donor,
                "shared": its.shared,
                "lender": its.lender,
                "tokens": its.tokens,
                "unknown": list(its.unknown),
                "hours": None if seconds is None else seconds / 3600,
            }
        )
    hours = [run["hours"] for run in runs]
    budget = study.spec.budget
    return {
        "study": study.spec.name,
        "digest": study.digest,
        "jobs": jobs,
        "runs": runs,
        "hours": None if None in hours else sum(hours),
        "speed": pace.tokens_per_second,
        "speed_source": pace.source,
        "budget_hours": None if budget is None else budget.total_seconds() / 3600,
        "spent_hours": pace.spent / 3600,
    }
