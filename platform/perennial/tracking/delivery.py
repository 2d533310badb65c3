"""The thread that delivers an outbox to MLflow, and retries until it is abandoned."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from perennial.redaction import hide_secrets
from perennial.tracking.outbox import Item, Outbox, Pending

if TYPE_CHECKING:
    from perennial.tracking.mlflow_runs import MlflowRuns

logger = logging.getLogger("perennial.tracking")

GATHER_SECONDS = 1.0
"""pause between calls, in which values gather to one batch"""
FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 30.0
_ERROR_CHARACTERS = 300


class Delivery(threading.Thread):
    """Imports MLflow, connects, and sends what the outbox holds; retries until it is abandoned."""

    def __init__(self, outbox: Outbox, uri: str, experiment: str, artifacts: str | None) -> None:
        super().__init__(name="perennial-tracking", daemon=True)
        self.last_error = ""
        self._outbox = outbox
        self._target = (uri, experiment, artifacts)
        self._mlflow: MlflowRuns | None = None
        self._refused: set[str] = set()
        self._backoff_seconds = FIRST_BACKOFF_SECONDS

    def run(self) -> None:
        """Deliver until the outbox is closed and empty, or abandoned."""
        while self._outbox.wait_for_work():
            failed_before, self.last_error = self.last_error, ""
            try:
                self._deliver_all(self._connected())
            except Exception as error:
                # MLflow, its database drivers and its plug-ins raise anything; a failure of
                # tracking must never end training. Terminated is no Exception and passes.
                self._record(error)
            self._log_change(failed_before)
            self._outbox.pause(self._pause_seconds())

    def _connected(self) -> MlflowRuns:
        if self._mlflow is None:
            # It logs every table that it creates, which is of no use to the user who trains.
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
            from perennial.tracking.mlflow_runs import MlflowRuns

            self._mlflow = MlflowRuns(*self._target)
        return self._mlflow

    def _deliver_all(self, mlflow: MlflowRuns) -> None:
        runs = self._outbox.runs()
        for run in runs:
            if not run.attached:
                parent_id = None if run is runs[0] else (run.parent or runs[0]).id
                self._outbox.attach(run, *mlflow.attach(run, parent_id))
        for run in runs:
            run_id = str(run.id)
            while points := self._outbox.batch(run):
                self._deliver(mlflow, run, points, partial(mlflow.log, run_id, points))
            for item in self._outbox.others(run):
                try:
                    self._deliver(mlflow, run, [item], partial(mlflow.put, run_id, item))
                except Exception as error:
                    # A file that cannot be stored must not hold up the values behind it.
                    self._record(error)

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
                logger.warning("MLflow refuses a part of %s: %s", run.key, _first_line(error))
            self._outbox.done(run, items, lost=True)
        else:
            self._outbox.done(run, items)

    def _record(self, error: Exception) -> None:
        self.last_error = _first_line(error)

    def _log_change(self, failed_before: str) -> None:
        if self.last_error and not failed_before:
            logger.warning(
                "MLflow does not answer; training goes on and what it logs is kept: %s",
                self.last_error,
            )
        if failed_before and not self.last_error:
            logger.info("MLflow answers again")

    def _pause_seconds(self) -> float:
        if not self.last_error:
            self._backoff_seconds = FIRST_BACKOFF_SECONDS
            return GATHER_SECONDS
        pause = self._backoff_seconds * random.uniform(0.5, 1.0)
        self._backoff_seconds = min(2 * self._backoff_seconds, LAST_BACKOFF_SECONDS)
        return min(pause, FIRST_BACKOFF_SECONDS) if self._outbox.closing else pause


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return hide_secrets(f"{type(error).__name__}: {lines[0][:_ERROR_CHARACTERS]}")
