"""Pull the run's sources when they are due, in a command or while training runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from perennial.controller.context import Workspace

if TYPE_CHECKING:
    from perennial.sources import DataSource


def open_sources(work: Workspace) -> list[DataSource]:
    """Return the sources of the run file; contacts none of them."""
    if not work.spec.sources:
        return []
    from perennial.sources import DataSource

    # Plain text gives at most one token a byte, compressed text about 16: see
    # `ingest_stage.check_size`.
    least_bytes = max(1, work.spec.tokens_per_step // 16)
    return [
        DataSource(name, spec, work.store, work.inbox, least_bytes)
        for name, spec in work.spec.sources.items()
    ]


def pull_due(work: Workspace, sources: Sequence[DataSource], now: datetime) -> list[str]:
    """Pull the sources that are due, and land what makes a whole corpus.

    Writes to the inbox and to `sources/`, never to the ledger: a controller in another process is
    not disturbed.

    Args:
        work: the run, for its log.
        sources: as `open_sources` gives them.
        now: the time against which schedules are compared.

    Returns:
        Names of the corpora that landed.
    """
    return [name for source in sources for name in source.run_due(now, work.log)]


def utc_now() -> datetime:
    """Return the time of the sources' clock."""
    return datetime.now(UTC)


class Puller(threading.Thread):
    """A thread that pulls while training runs, which may take days."""

    def __init__(
        self, work: Workspace, interval_seconds: float, clock: Callable[[], datetime] = utc_now
    ) -> None:
        super().__init__(name="perennial-sources", daemon=True)
        self._work = work
        self._sources = open_sources(work)
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._stopped = threading.Event()

    def run(self) -> None:
        """Pull what is due until stopped; return at once for a run without sources."""
        while self._sources:
            pull_due(self._work, self._sources, self._clock())
            if self._stopped.wait(self._interval_seconds):
                return

    def stop(self) -> None:
        """End after the present pull; the next process finishes what it leaves incomplete."""
        self._stopped.set()
