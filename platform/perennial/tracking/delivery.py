"""The thread that delivers an outbox to MLflow, and retries until it is abandoned."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from perennial.tracking.failures import Failure, explain
from perennial.tracking.outbox import Artifact, Item, Outbox, Pending

if TYPE_CHECKING:
    from perennial.tracking.mlflow_runs import MlflowRuns

logger = logging.getLogger("perennial.tracking")

GATHER_SECONDS = 1.0
"""pause between calls, in which values gather to one batch"""
FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 30.0


class Delivery(threading.Thread):
    """Imports MLflow, connects, and sends what the outbox holds; retries until it is abandoned.

    Args:
        outbox: what is to be sent.
        uri: of MLflow.
        experiment: its name.
        owned: the database is part of one run's store.

    Attributes:
        failure: what is wrong with MLflow; None while it takes what is sent.
    """

    def __init__(self, outbox: Outbox, uri: str, experiment: str, owned: bool) -> None:
        super().__init__(name="perennial-tracking", daemon=True)
        self.failure: Failure | None = None
        self._outbox = outbox
        self._target = (uri, experiment, owned)
        self._mlflow: MlflowRuns | None = None
        self._thorough = False
        self._refused: set[str] = set()
        self._backoff_seconds = FIRST_BACKOFF_SECONDS

    def run(self) -> None:
        """Deliver until the outbox is closed and empty, or abandoned, or waiting is of no use."""
        while self._outbox.wait_for_work():
            failed_before, self.failure = self.failure, None
            closing = self._outbox.closing  # so that an attempt follows the last item
            try:
                self._deliver_all(self._connected())
            except Exception as error:
                # MLflow, its database drivers and its plug-ins raise anything; a failure of
                # tracking must never end training. Terminated is no Exception and passes.
                self._record(explain(error))
            self._log_change(failed_before)
            self._outbox.tried(failed=self.failure is not None)
            if closing and self.failure is not None and self._is_lasting(self.failure):
                return
            self._outbox.pause(self._pause_seconds())

    def _connected(self) -> MlflowRuns:
        if self._mlflow is None:
            # It logs every table that it creates, and failures with their traceback; the user gets
            # one line of them from here.
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
            from perennial.tracking.mlflow_runs import MlflowRuns, Target

            self._mlflow = MlflowRuns(Target(*self._target), self._thorough)
            self._thorough = False
        return self._mlflow

    def _deliver_all(self, mlflow: MlflowRuns) -> None:
        runs = self._outbox.runs()
        for run in runs:
            if not run.attached:
                parent_id = None if run is runs[0] else (run.parent or runs[0]).id
                attached = mlflow.attach(run, parent_id)
                self._outbox.attach(run, attached.run_id, attached.steps)
                if run is runs[0]:
                    self._outbox.complete = attached.complete
        for run in runs:
            run_id = str(run.id)
            while points := self._outbox.batch(run):
                self._deliver(mlflow, run, points, partial(mlflow.log, run_id, points))
            for item in self._outbox.others(run):
                try:
                    self._deliver(mlflow, run, [item], partial(mlflow.put, run_id, item))
                except Exception as error:
                    # A file that cannot be stored must not hold up the values behind it.
                    self._record(explain(error, item.name if isinstance(item, Artifact) else ""))
        if self._outbox.completing and self.failure is None:
            mlflow.complete(str(runs[0].id))
            self._outbox.marked()

    def _deliver(
        self, mlflow: MlflowRuns, run: Pending, items: Sequence[Item], send: Callable[[], None]
    ) -> None:
        """Send these items and mark them done, whether MLflow took or refused them.

        Raises what MLflow raises when another try may succeed.
        """
        try:
            send()
        except Exception as error:
            if not mlflow.refused(error):
                raise
            if run.key not in self._refused:
                self._refused.add(run.key)
                words = explain(error).words
                logger.warning("MLflow refuses a part of %s: %s", run.key, words)
            self._outbox.done(run, items, lost=True)
        else:
            self._outbox.done(run, items)

    def _record(self, failure: Failure) -> None:
        self.failure = failure
        if failure.broken:
            self._mlflow, self._thorough = None, True
            self._outbox.detach()

    def _is_lasting(self, failure: Failure) -> bool:
        return failure.lasting or (failure.broken and not self._target[-1])

    def _log_change(self, failed_before: Failure | None) -> None:
        if self.failure is None:
            if failed_before is not None:
                logger.info("MLflow answers again")
        elif failed_before is None or failed_before.problem != self.failure.problem:
            logger.warning("%s; training goes on, and what it logs is kept", self.failure)

    def _pause_seconds(self) -> float:
        if self.failure is None:
            self._backoff_seconds = FIRST_BACKOFF_SECONDS
            return GATHER_SECONDS
        pause = self._backoff_seconds * random.uniform(0.5, 1.0)
        self._backoff_seconds = min(2 * self._backoff_seconds, LAST_BACKOFF_SECONDS)
        return min(pause, FIRST_BACKOFF_SECONDS) if self._outbox.closing else pause
