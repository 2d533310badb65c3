"""Measure a stage while the next one trains, and stop that one where a gate is broken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from perennial.controller import evaluate_stage as judging
from perennial.controller.context import Workspace
from perennial.controller.train_stage import train_trunk
from perennial.errors import LedgerError, PerennialError, StaleDecision
from perennial.evaluation import Answers, Questions, examine

if TYPE_CHECKING:
    from perennial.training.job import Job

Attempt = Callable[[str, Callable[[], None]], None]
"""carries out an action on a corpus, and records its failure"""
_POLL_SECONDS = 0.25


class BesideTraining:
    """The measurement of a stage beside the training of the next one.

    A thread measures and writes nothing; `follow`, called between two looks at the training, writes
    what came out. So nothing is written once this process was asked to end.

    Args:
        work: the run; its corpus is `trained`, `evaluating` or `evaluated`.
        name: the first corpus of the stage that is measured.
        following: the stage that trains.
        attempt: carries out what follows the measurement.
    """

    def __init__(self, work: Workspace, name: str, following: str, attempt: Attempt) -> None:
        self._work, self._name, self._following = work, name, following
        self._attempt = attempt
        self._answers: Answers | None = None
        self._broken: Exception | None = None
        self._failure: PerennialError | None = None
        self._is_settled = False
        self._thread: threading.Thread | None = None
        attempt(name, self._begin)

    def _begin(self) -> None:
        """Begin to measure; what has to be measured before that is not beside the training."""
        work = self._work
        if work.state.corpora[self._name].state == "evaluated":
            return
        stage = judging.prepare(work, self._name)
        asked = judging.questions_at(work, stage)
        # The workers may have every CPU of the cluster, until the stage ends.
        asked = replace(asked, loading=replace(asked.loading, cpus=0.0))
        end = work.state.ends[stage.name]
        work.log(f"evaluating {stage.name} while {self._following} trains")
        self._thread = threading.Thread(
            target=self._measure, args=(end, asked), name="measure", daemon=True
        )
        self._thread.start()

    def _measure(self, end: str, asked: Questions) -> None:
        try:
            self._answers = examine(self._work.store, end, asked)
        except Exception as broken:  # raised where what came out is written
            self._broken = broken

    def follow(self) -> bool:
        """Write what is measured, once it is; return whether the next stage is to go on."""
        with suppress(OSError):  # the store is away: the next look tries again, at last `finish`
            self._look()
        return self._failure is None and self._is_wanted()

    def finish(self) -> bool:
        """Wait for the measurement and write it; return whether the next stage is of the trunk."""
        if self._is_measuring():
            self._work.workers.make_room(self._work.spec.evaluation.gpus)
        while not self._is_over():
            if self._thread is not None:
                self._thread.join(_POLL_SECONDS)  # in pieces, between which a signal is handled
            self._look()
        if self._failure is not None:
            raise self._failure
        return self._is_wanted()

    def _look(self) -> None:
        """Write the measurement if it is made, and not written yet."""
        if self._is_over() or self._is_measuring():
            return
        try:
            self._work.refresh()
            self._attempt(self._name, self._settle)
            self._is_settled = True
        except StaleDecision:
            pass  # another process wrote something: the next look tries again
        except PerennialError as failure:  # raised once the workers have saved and ended
            self._failure = failure

    def _is_measuring(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _is_over(self) -> bool:
        return self._is_settled or self._failure is not None

    def _is_wanted(self) -> bool:
        return any(stage.name == self._following for stage in self._work.state.unfinished)

    def _settle(self) -> None:
        """Write the measurement, and judge it, as far as that is not done."""
        work = self._work
        if self._broken is not None:
            raise self._broken
        if work.state.corpora[self._name].state == "evaluating" and self._answers is not None:
            judging.keep(work, self._name, self._answers)
        if work.state.corpora[self._name].state == "evaluated":
            judging.judge(work, self._name)


def train_beside(work: Workspace, job: Job, beside: BesideTraining) -> str | None:
    """Train a stage while the one before it is measured.

    Args:
        work: the run.
        job: of the stage.
        beside: the measurement.

    Returns:
        The key of its last checkpoint; None where the stage left the trunk, however it ended.
    """
    try:
        checkpoint = train_trunk(work, job, beside.follow)
    except LedgerError:
        raise  # who took charge measures too
    except Exception:
        if beside.finish():
            raise
        return None
    return checkpoint if beside.finish() else None
