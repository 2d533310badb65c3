"""The process of one run of a study: what is missing of it, from its first stage to its releases.

`python -m perennial.study.arm_process` reads its task as one line of JSON from stdin, and writes
what it does to stdout, a line of JSON each. It ends when stdin is closed, as it is when the process
of the study is killed: its workers store a checkpoint first.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

from perennial.causes import describe
from perennial.config import RunSpec, parse
from perennial.controller import loop
from perennial.controller import release as releases
from perennial.controller.context import Workspace
from perennial.controller.observer import RunObserver
from perennial.errors import Busy, InputError, PerennialError, StudyFailed, Terminated
from perennial.runs.events import Retried
from perennial.runs.lease import STALE_SECONDS
from perennial.runs.ledger import now
from perennial.store import Store, open_store
from perennial.store.stored_json import parse_json
from perennial.study import record as records
from perennial.study.branch import branch_off
from perennial.study.plan import ArmRun, AskedRelease
from perennial.training.stack import find_versions

if TYPE_CHECKING:
    from perennial.controller.observer import ObservedRun
    from perennial.training.job import Job
    from perennial.training.ray.progress_actor import Progress

Tell = Callable[[dict[str, Any]], None]
_LINE_SECONDS = 2.0
_BUSY_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class ArmTask:
    """The run that a process carries out, and what it may take from others.

    where: the study file, for errors.
    donor: name of the run whose first stages this one shares, and its store; None for none.
    lender: store of the run whose tokenised corpora are copied; None for none.
    """

    where: str
    study: str
    digest: str
    run: ArmRun
    donor: tuple[str, str] | None = None
    lender: str | None = None

    def to_json(self) -> str:
        """Return one line of JSON."""
        run = self.run
        document = {
            "where": self.where,
            "study": self.study,
            "digest": self.digest,
            "donor": self.donor,
            "lender": self.lender,
            "arm": run.arm,
            "seed": run.seed,
            "settings": run.settings,
            "spec": run.spec.model_dump(mode="json"),
            "releases": [
                {**vars(asked), "spec": asked.spec.model_dump(mode="json")}
                for asked in run.releases
            ],
        }
        return json.dumps(document)

    @classmethod
    def from_json(cls, text: str) -> ArmTask:
        """Return the task that `to_json` wrote."""
        its = parse_json(text)
        where = its["where"]
        asked = tuple(
            AskedRelease(**{**asked, "spec": parse(asked["spec"], RunSpec, where)})
            for asked in its["releases"]
        )
        spec, settings = parse(its["spec"], RunSpec, where), its["settings"]
        run = ArmRun(its["arm"], its["seed"], spec, asked, settings=settings)
        donor = tuple(its["donor"]) if its["donor"] else None
        return cls(where, its["study"], its["digest"], run, donor, its["lender"])


class Reporter(RunObserver):
    """Passes on messages, and the step that a job is at."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._said_at = 0.0

    def message(self, text: str) -> None:
        """Pass on a line."""
        self._tell({"message": text})

    def job_progressed(self, work: ObservedRun, job: Job, progress: Progress) -> None:
        """Pass on the step of a job, now and then."""
        if progress.rows and time.monotonic() - self._said_at > _LINE_SECONDS:
            self._said_at = time.monotonic()
            step = progress.rows[-1]["step"] - job.first_step
            self._tell({"job": job.name, "step": step, "steps": job.mix.steps})


def carry_out(task: ArmTask, tell: Tell) -> None:
    """Train, release and measure what is missing of a run. Safe to repeat and kill.

    Args:
        task: the run.
        tell: called with every message.

    Raises:
        StudyFailed: a gate stopped a stage.
        Exception: the run's own failure.
    """
    run = task.run
    store = open_store(run.spec.store)
    store.check()
    _begin(task, store, tell)
    records.check_record(store, task.where, run.arm, run.settings)
    borrow = {"borrow": task.lender}
    spec = run.spec.model_copy(update={"corpora": run.spec.corpora.model_copy(update=borrow)})
    with records.counted_time(store):
        _train(task, spec, tell)
        for asked in run.releases:
            _with_workspace(
                task,
                asked.spec,
                tell,
                partial(releases.release, origin=asked.after, average=asked.average),
            )
        _with_workspace(task, spec, tell, releases.evaluate)


def _begin(task: ArmTask, store: Store, tell: Tell) -> None:
    """Write the record of a run, and begin it with the stages that another one has."""
    if store.exists(records.RECORD):
        return
    if store.exists(records.BRANCHING):
        for entry in store.list():  # half of a copy, which a process began that was killed
            if entry.key != records.BRANCHING:
                store.remove(entry.key)
    elif store.list("ledger"):
        raise InputError(
            task.where,
            "place",
            f"{store.url} holds a run that is none of a study",
            "give the study another place",
            code="study-place-taken",
        )
    run = task.run
    record = records.StudyRecord(
        study=task.study,
        digest=task.digest,
        arm=run.arm,
        seed=run.seed,
        settings=run.settings,
        versions=find_versions(),
        machine=records.describe_machine(),
    )
    if task.donor is not None:
        store.create(records.BRANCHING, b"{}")
        name, donor = task.donor
        shared = branch_off(store, run.spec, open_store(donor))
        if shared:
            tell({"message": f"begins behind stage {shared} of {name}"})
            record = replace(record, shared=shared, donor=name)
    record.write(store)
    store.remove(records.BRANCHING)


def _train(task: ArmTask, spec: RunSpec, tell: Tell) -> None:
    def advance(work: Workspace) -> None:
        retry_failed(work)
        loop.check_inbox(work)
        loop.ingest_landed(work, wait=True)  # all of it first: other arms wait for the corpora
        loop.advance(work)
        gated = work.state.gated
        if gated is not None:
            raise StudyFailed(f"a gate stopped {gated.name}; a study takes no decisions")

    _with_workspace(task, spec, tell, advance)


def retry_failed(work: Workspace) -> None:
    """Let corpora go on that failed for the last time: the command was given again."""
    work.refresh()
    failed = [c.name for c in work.state.corpora.values() if c.state == "failed" and not c.next_try]
    for name in failed:
        work.log(f"trying {name} again")
        work.decide(Retried(at=now(), corpus=name, by_person=False))


def _with_workspace(
    task: ArmTask, spec: RunSpec, tell: Tell, act: Callable[[Workspace], object]
) -> None:
    """Open a run, act on it, and close it; wait for a process that holds it and is ending."""
    end = time.monotonic() + 2 * STALE_SECONDS
    while True:
        work = Workspace(spec, task.where, [Reporter(tell)], verb="study")
        try:
            work.check()
            act(work)
            return
        except Busy:
            if time.monotonic() > end:
                raise
        finally:
            work.close()
        time.sleep(_BUSY_POLL_SECONDS)


def main() -> int:
    """Carry out the task that stdin holds; return the exit code."""
    tell = _protocol()
    task = ArmTask.from_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        carry_out(task, tell)
    except (Terminated, KeyboardInterrupt):
        return Terminated.exit_code
    except Exception as failure:
        known = isinstance(failure, PerennialError)
        text = str(failure) if known else describe(failure)
        tell({"failed": " ".join(text.split())})
        if not known:
            raise
        return failure.exit_code if isinstance(failure, PerennialError) else 1
    tell({"done": True})
    return 0


def _protocol() -> Tell:
    """Return what writes to the stdout that this process began with; Ray writes to stdout too."""
    stream: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(message: dict[str, Any]) -> None:
        stream.write(json.dumps(message) + "\n")

    return tell


def _end_with_parent() -> None:
    """Ask this process to end when stdin is closed."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
