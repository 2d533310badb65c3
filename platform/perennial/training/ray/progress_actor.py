"""The actor between workers and driver: a module that imports no library.

An actor's process imports its class's module before its first call; with torch among the imports
every start of workers would wait seconds longer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Reports of the worker group since the last poll.

    started: (trunk step, world size) of every start of a worker group.
    rows: one per finished optimizer step: the metrics (`training.metrics`), step, phase,
        batch_tokens, seconds (by part of the step, see `step_timer`), and spike (what is wrong)
        where the job ignores one.
    saved: keys of committed checkpoints.
    failed_saves: steps whose checkpoint could not be stored, one entry per failure.
    notices: sentences about what went wrong without ending the training.
    skipped: what is wrong with every batch that is left out from now on.
    stopped: why the workers ended before the last step; empty when they did not.
    """

    started: list[tuple[int, int]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    failed_saves: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)


class ProgressActor:
    """An actor between the workers, which take jobs from it and report to it, and the driver.

    No call waits for the other side, so a slow driver does not slow a step down. Of a driver that
    offers a job and workers that are let go, the first to call decides.
    """

    def __init__(self, keep_seconds: float) -> None:
        """Begin without a job; workers without one wait for `keep_seconds`."""
        self._keep_seconds = keep_seconds
        self._job: dict[str, Any] | None = None
        self._idle_since = time.monotonic()
        self._is_over = False
        self._progress = Progress()
        self._stop = False
        self._is_stopped = False
        self._started_at = 0.0

    def offer(self, job: dict[str, Any]) -> bool:
        """Give the workers their next job. Returns whether they are still there to take it."""
        if not self._is_over:
            self._job = job
        return not self._is_over

    def read_job(self) -> dict[str, Any] | None:
        """Return the job that is to be trained, which a group that failed begins again; or None."""
        return self._job

    def may_wait(self) -> bool:
        """Return whether workers may wait for a job; without one they go when they may not."""
        if time.monotonic() - self._idle_since >= self._keep_seconds or self._stop:
            self.let_go()
        return not self._is_over

    def end_job(self) -> None:
        """Note that the job's last step is stored, and that its workers wait for the next job."""
        self._job, self._idle_since = None, time.monotonic()

    def let_go(self) -> str | None:
        """Take no further job, unless one is to be trained: return its folder then."""
        self._is_over |= self._job is None
        return None if self._job is None else str(self._job["folder"])

    def started(self, step: int, world_size: int) -> None:
        self._started_at = time.time()
        self._progress.started.append((step, world_size))

    def last_start(self) -> float:
        """Return when a group last began to train, in seconds since 1970."""
        return self._started_at

    def push(self, rows: list[dict[str, Any]]) -> bool:
        """Add rows. Returns whether the driver has asked the workers to save and end."""
        self._progress.rows.extend(rows)
        return self._stop

    def saved(self, key: str) -> None:
        self._progress.saved.append(key)

    def skipped(self, why: str) -> None:
        self._progress.skipped.append(why)

    def failed_save(self, step: int, line: str) -> None:
        self._progress.failed_saves.append(step)
        self._progress.notices.append(line)

    def notice(self, line: str) -> None:
        self._progress.notices.append(line)

    def ask_to_stop(self) -> None:
        self._stop = True

    def stopped(self, why: str) -> None:
        self._is_stopped = True
        self._progress.stopped.append(why)

    def is_stopped(self) -> bool:
        """Return whether a worker said that another worker group would fare no better."""
        return self._is_stopped

    def drain(self) -> tuple[Progress, bool]:
        """Return what was reported since the last call, and whether a job is to be trained."""
        progress, self._progress = self._progress, Progress()
        return progress, self._job is not None
