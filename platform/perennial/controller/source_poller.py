"""The run's sources: pulled when they are due, by a command or beside training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from perennial.controller.context import Workspace

if TYPE_CHECKING:
    from perennial.sources import DataSource


def open_sources(work: Workspace) -> list[DataSource]:
    """The sources of the run file; nothing is contacted."""
    if not work.spec.sources:
        return []
    from perennial.sources import DataSource

    # Plain text gives at most a token a byte, compressed text about 16: see `ingestion.check_size`.
    least_bytes = max(1, work.spec.tokens_per_step // 16)
    return [
        DataSource(name, spec, work.store, work.inbox, least_bytes)
        for name, spec in work.spec.sources.items()
    ]


def pull_due(work: Workspace, sources: Sequence[DataSource], now: datetime) -> list[str]:
    """Pull the sources that are due and land what is enough; the corpora that landed.

    Writes to the inbox and to `sources/` only, never to the ledger: no controller is disturbed.
    """
    return [name for source in sources for name in source.run_due(now, work.log)]


def utc_now() -> datetime:
    """The clock of the sources."""
    return datetime.now(UTC)


class Puller(threading.Thread):
    """Pulls beside training, which may take days: a source's schedule goes on meanwhile."""

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
        """Look again and again until it is stopped; ends at once for a run without sources."""
        while self._sources:
            pull_due(self._work, self._sources, self._clock())
            if self._stopped.wait(self._interval_seconds):
                return

    def stop(self) -> None:
        """End after the look that is under way; what it leaves half done the next one finishes."""
        self._stopped.set()
