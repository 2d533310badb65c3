"""State of a source, folded from its log, and the decisions that follow from it. Pure."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

from perennial.config.sources import SourceSpec
from perennial.sources.address import identify
from perennial.sources.events import (
    AttemptFailed,
    BadFile,
    CorpusChosen,
    CorpusLanded,
    FilesPulled,
    SourceEvent,
)

_FIRST_RETRY = timedelta(minutes=1)
_LAST_RETRY = timedelta(hours=1)
_LAST_FILE_RETRY = timedelta(days=1)


@dataclass
class SourceState:
    """State of one source; `secrets` are those of its run file."""

    secrets: Set[str] = frozenset()
    pulls: int = 0
    pulled_at: datetime | None = None
    watermark: str = ""
    #: version of every file that was pulled, by the identity of its origin
    seen: dict[str, str] = field(default_factory=dict)
    #: what the last pull could not get, how many more there were, and what it left for the next
    bad: tuple[BadFile, ...] = ()
    more_bad: int = 0
    rest: int = 0
    #: pulls with files that no corpus was chosen for, oldest first
    waiting: list[FilesPulled] = field(default_factory=list)
    #: the corpus that is being landed, and its pulls
    chosen: CorpusChosen | None = None
    landing: list[FilesPulled] = field(default_factory=list)
    #: names of all corpora that were ever chosen, and those that landed
    names: list[str] = field(default_factory=list)
    landed: list[str] = field(default_factory=list)
    #: failures since the last success
    failures: int = 0
    failed_at: datetime | None = None
    error: str = ""

    def apply(self, event: SourceEvent) -> None:
        """Apply one event of the log."""
        match event:
            case AttemptFailed():
                self.failures += 1
                self.failed_at, self.error = event.at, event.reason
                return
            case FilesPulled():
                self.pulls += 1
                self.pulled_at, self.watermark = event.at, event.watermark
                self.seen |= {
                    identify(file.origin, self.secrets): file.version for file in event.files
                }
                self.bad, self.more_bad, self.rest = event.bad, event.more_bad, event.rest
                self.waiting += [event] if event.files else []
            case CorpusChosen():
                # Possibly a second choice for the same pulls, when another producer landed a corpus
                # of the first name.
                self.landing, self.waiting = [*self.landing, *self.waiting], []
                self.chosen = event
                self.names.append(event.corpus)
            case CorpusLanded():
                self.chosen, self.landing = None, []
                self.landed.append(event.corpus)
        self.failures, self.failed_at, self.error = 0, None, ""

    @property
    def waiting_bytes(self) -> int:
        """Return the bytes that were pulled and are in no corpus yet."""
        return sum(file.size_bytes for pull in self.waiting for file in pull.files)


def next_due(spec: SourceSpec, state: SourceState, now: datetime) -> datetime:
    """Return the time of the next pull; a time that is not after `now` means at once.

    Missed times of the schedule count as one. After a failure the wait doubles from a minute to an
    hour, and ends at the schedule's next time at the latest. A file that could not be had makes the
    source due when the file is to be tried again.

    Args:
        spec: the source in the run file.
        state: the source's state.
        now: the current time.
    """
    if state.failed_at is not None:
        wait = _wait(state.failures, _LAST_RETRY)
        return min(state.failed_at + wait, spec.schedule.next_due(state.failed_at))
    if state.pulled_at is None:
        return spec.schedule.last_due(now)
    retries = [file.retry_at for file in state.bad]
    return min([spec.schedule.next_due(state.pulled_at), *retries])


def next_file_try(spec: SourceSpec, failures: int, now: datetime, *, refused: bool) -> datetime:
    """Return when to try a file again: after a minute, two, ... up to a day.

    Args:
        spec: the source in the run file.
        failures: pulls in a row that could not get it, this one included.
        now: the current time.
        refused: another try cannot help, so the schedule's next time is soon enough.
    """
    if refused:
        return spec.schedule.next_due(now)
    return now + _wait(failures, _LAST_FILE_RETRY)


def _wait(failures: int, longest: timedelta) -> timedelta:
    return min(_FIRST_RETRY * (1 << min(failures - 1, 20)), longest)


def is_enough(spec: SourceSpec, state: SourceState, now: datetime, least_bytes: int) -> bool:
    """Return whether to land what waits: it has reached the minimum, or is older than `max_age`.

    Args:
        spec: the source in the run file.
        state: the source's state.
        now: the current time.
        least_bytes: bytes below which no stage can be made, whatever the source asks for.
    """
    if not state.waiting or state.waiting_bytes < least_bytes:
        return False
    if state.waiting_bytes >= spec.minimum:
        return True
    return spec.max_age is not None and now - state.waiting[0].at >= spec.max_age


def make_corpus_name(source: str, now: datetime, taken: Set[str]) -> str:
    """Return `<source>-<date>`, with `.2`, `.3`, ... for further corpora of that date.

    Args:
        source: the source's name.
        now: the current time; the date is in UTC.
        taken: names that are in use.
    """
    base = f"{source}-{now.astimezone(UTC):%Y-%m-%d}"
    names = (base if number == 1 else f"{base}.{number}" for number in count(1))
    return next(name for name in names if name not in taken)
