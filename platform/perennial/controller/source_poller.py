"""Pull the run's sources when they are due, in a command or while training runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from perennial.controller.context import Workspace

if TYPE_CHECKING:
    from perennial.controller.observer import RunObserver
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
    """Pull the sources that are due, all at once, and land what makes a whole corpus.

    Writes to the inbox and to `sources/`, never to the ledger: a controller in another process is
    not disturbed.

    Args:
        work: the run, for its log.
        sources: as `open_sources` gives them.
        now: the time against which schedules are compared.

    Returns:
        Names of the corpora that landed, in the order of the sources.
    """
    landed: dict[str, list[str]] = {}

    def pull(source: DataSource) -> None:
        landed[source.name] = _run_due(work, source, now)

    threads = [_thread(source, pull) for source in sources]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        # Programs that sources have started would outlive this process.
        for source in sources:
            source.stop()
        raise
    return [name for source in sources for name in landed.get(source.name, [])]


def _run_due(work: Workspace, source: DataSource, now: datetime) -> list[str]:
    """Do what is due of a source, and let observers know of its tries and of what keeps failing."""
    landed = source.run_due(now, work.log)
    failures = source.state.failures
    work.notify(lambda observer: observer.source_tried(work, source.name, failures))
    for episode, problem in source.troubles():
        trouble = partial(_follow, work=work, name=source.name, problem=problem, episode=episode)
        work.notify(trouble)
    return landed


def _follow(
    observer: RunObserver, *, work: Workspace, name: str, problem: str, episode: str
) -> None:
    observer.source_in_trouble(work, name, problem, episode)


def _thread(source: DataSource, pull: Callable[[DataSource], None]) -> threading.Thread:
    return threading.Thread(target=pull, args=(source,), name=f"source-{source.name}", daemon=True)


def utc_now() -> datetime:
    """Return the time of the sources' clock."""
    return datetime.now(UTC)


class Puller:
    """Threads that pull while training runs, which may take days: one for each source.

    A source that takes long, or whose server does not answer, holds none of the others.

    Args:
        work: the run.
        interval_seconds: time between two looks at a source's schedule.
        clock: the time against which schedules are compared.
    """

    def __init__(
        self, work: Workspace, interval_seconds: float, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._work = work
        self._sources = open_sources(work)
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to pull what is due."""
        for source in self._sources:
            _thread(source, self._pull).start()

    def stop(self) -> None:
        """Break off the present pulls, and end their programs; the next process repeats them."""
        self._stopped.set()
        for source in self._sources:
            source.stop()

    def _pull(self, source: DataSource) -> None:
        while not self._stopped.is_set():
            _run_due(self._work, source, self._clock())
            self._stopped.wait(self._interval_seconds)
