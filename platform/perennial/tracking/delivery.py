"""The thread that delivers an outbox to a tracking service, and retries until it is abandoned."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from perennial.tracking.outbox import Artifact, Item, Outbox, Pending

if TYPE_CHECKING:
    from perennial.tracking.destinations import Destination, TrackedRuns
    from perennial.tracking.failures import Failure

logger = logging.getLogger("perennial.tracking")

GATHER_SECONDS = 1.0
"""pause between calls, in which values gather to one batch"""
FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 30.0


class Delivery(threading.Thread):
    """Connects to a service, and sends what the outbox holds; retries until it is abandoned.

    Args:
        outbox: what is to be sent.
        destination: the service.

    Attributes:
        failure: what is wrong with the service; None while it takes what is sent.
    """

    def __init__(self, outbox: Outbox, destination: Destination) -> None:
        super().__init__(name="perennial-tracking", daemon=True)
        self.failure: Failure | None = None
        self._outbox = outbox
        self._to = destination
        self._service: TrackedRuns | None = None
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
                # A service, its database drivers and its plug-ins raise anything; a failure of
                # tracking must never end training. Terminated is no Exception and passes.
                self._record(self._to.explain(error, ""))
            self._log_change(failed_before)
            self._outbox.tried(failed=self.failure is not None)
            if closing and self.failure is not None and self._is_lasting(self.failure):
                break
            self._outbox.pause(self._pause_seconds())
        self._close()

    def _close(self) -> None:
        if self._service is not None:
            try:
                self._service.close()
            except Exception as error:
                self._record(self._to.explain(error, ""))
                self._log_change(None)

    def _connected(self) -> TrackedRuns:
        if self._service is None:
            self._service = self._to.connect(self._thorough)
            self._thorough = False
        return self._service

    def _deliver_all(self, service: TrackedRuns) -> None:
        runs = self._outbox.runs()
        for run in runs:
            if not run.attached:
                parent_id = None if run is runs[0] else (run.parent or runs[0]).id
                attached = service.attach(run, parent_id)
                self._outbox.attach(run, attached.run_id, attached.steps)
                if run is runs[0]:
                    self._outbox.complete = attached.complete
        for run in runs:
            run_id = str(run.id)
            while points := self._outbox.batch(run):
                self._deliver(service, run, points, partial(service.log, run_id, points))
            for item in self._outbox.others(run):
                try:
                    self._deliver(service, run, [item], partial(service.put, run_id, item))
                except Exception as error:
                    # A file that cannot be stored must not hold up the values behind it.
                    name = item.name if isinstance(item, Artifact) else ""
                    self._record(self._to.explain(error, name))
        if self._outbox.completing and self.failure is None:
            service.complete(str(runs[0].id))
            self._outbox.marked()

    def _deliver(
        self, service: TrackedRuns, run: Pending, items: Sequence[Item], send: Callable[[], None]
    ) -> None:
        """Send these items and mark them done, whether the service took or refused them.

        Raises what the service raises when another try may succeed.
        """
        try:
            send()
        except Exception as error:
            if not service.refused(error):
                raise
            if run.key not in self._refused:
                self._refused.add(run.key)
                words = self._to.explain(error, "").words
                logger.warning("%s refuses a part of %s: %s", self._to.name, run.key, words)
            self._outbox.done(run, items, lost=True)
        else:
            self._outbox.done(run, items)

    def _record(self, failure: Failure) -> None:
        self.failure = failure
        if failure.broken:
            self._service, self._thorough = None, True
            self._outbox.detach()

    def _is_lasting(self, failure: Failure) -> bool:
        return failure.lasting or (failure.broken and not self._to.owned)

    def _log_change(self, failed_before: Failure | None) -> None:
        if self.failure is None:
            if failed_before is not None:
                logger.info("%s answers again", self._to.name)
        elif failed_before is None or failed_before.problem != self.failure.problem:
            logger.warning("%s; training goes on, and what it logs is kept", self.failure)

    def _pause_seconds(self) -> float:
        if self.failure is None:
            self._backoff_seconds = FIRST_BACKOFF_SECONDS
            return GATHER_SECONDS
        pause = self._backoff_seconds * random.uniform(0.5, 1.0)
        self._backoff_seconds = min(2 * self._backoff_seconds, LAST_BACKOFF_SECONDS)
        return min(pause, FIRST_BACKOFF_SECONDS) if self._outbox.closing else pause
