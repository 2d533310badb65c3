"""The pull that every kind of source works on, its budgets, and the files that it yields."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from perennial.config.cron import show_duration
from perennial.config.sources import SourceSpec, show_size
from perennial.corpora import find_kind, is_hidden
from perennial.errors import PullFailed, PullRefused, PullSpent
from perennial.sources.address import identify
from perennial.sources.breaker import Breaker
from perennial.sources.events import BadFile
from perennial.sources.state import next_file_try

_ODD = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST = 120
_REASON_CHARACTERS = 500
_MOST_FILES = 50_000  # of a pull: its event, and a corpus, name each of them
_MOST_BAD = 1_000  # that an event names
_MOST_IN_A_ROW = 20  # failures after which the place itself is taken for broken


@dataclass(frozen=True)
class FetchedFile:
    """A new file on the local disk; its consumer removes it.

    Attributes:
        local: the file.
        name: its name at its origin.
        origin: where it came from, as it may be stored.
        version: distinguishes its content from older content of the same origin; "" if unknown.
    """

    local: Path
    name: str
    origin: str
    version: str


class Candidate(NamedTuple):
    """A file that a place lists and that is to be fetched if it can be.

    Attributes:
        origin: where it is, as it may be stored.
        version: as the list gives it; "" for none.
        fetch: returns the file, or None when it is gone or unchanged.
    """

    origin: str
    version: str
    fetch: Callable[[], FetchedFile | None]


@dataclass
class Pull:
    """State of one pull.

    Attributes:
        spec: the source in the run file.
        seen: version, by identity of the origin, of every file that was pulled before.
        bad_before: files that the pull before could not get.
        folder: an empty folder on the local disk.
        watermark: that of the pull before; a source replaces it by that of this pull.
        now: time of the source's clock at which the pull began.
        breaker: ends what the pull waits for.
        passed_over: files of an unknown format, and files that were listed but are gone.
        bad: files that cannot be had.
        rest: files that are left for the next pull.
    """

    spec: SourceSpec
    seen: Mapping[str, str]
    bad_before: Sequence[BadFile]
    folder: Path
    watermark: str
    now: datetime
    breaker: Breaker
    passed_over: int = 0
    bad: list[BadFile] = field(default_factory=list)
    rest: int = 0

    def __post_init__(self) -> None:
        self.secrets = frozenset(self.spec.secrets)
        self._failures = {self.identify(file.origin): file for file in self.bad_before}
        self._bytes_left = self.spec.max_pull
        self._deadline = monotonic() + self.spec.timeout.total_seconds()

    def identify(self, origin: str) -> str:
        """Return the identity of a file's origin."""
        return identify(origin, self.secrets)

    def wants(self, name: str) -> bool:
        """Return whether to pull a file; count it if its format is unknown.

        Args:
            name: its path below the source's place.
        """
        base = name.rpartition("/")[2]
        if not base or is_hidden(name) or not fnmatchcase(base, self.spec.match):
            return False
        kind = find_kind(_plain(base))
        # Of a feed of everything, what is no text is none of the data.
        if kind is None or (self.spec.match == "*" and kind.describe_other(are_ids=False)):
            self.passed_over += 1
            return False
        return True

    def seconds_for_file(self) -> float:
        """Return the time that a file may take. Raises PullSpent when there is none."""
        left = self._deadline - monotonic()
        if left <= 0:
            raise PullSpent(f"the pull has taken its `timeout` of {self._shown_timeout()}")
        return min(left, self.spec.file_timeout.total_seconds())

    def late(self) -> PullFailed:
        """Return the failure of a file that took all its time."""
        if monotonic() >= self._deadline:
            return PullSpent(f"took the rest of the pull's `timeout` of {self._shown_timeout()}")
        limit = show_duration(self.spec.file_timeout)
        return PullFailed(f"took longer than `file_timeout`, which is {limit}")

    def _shown_timeout(self) -> str:
        return show_duration(self.spec.timeout)

    def check_size(self, size_bytes: int, *, copied: bool = False) -> None:
        """Check that a file may have so many bytes.

        Args:
            size_bytes: its size, or what came of it so far.
            copied: the bytes are here, whatever is left of the pull.

        Raises:
            PullRefused: it is too large for the source.
            PullSpent: it does not fit into what is left of this pull.
        """
        if size_bytes > self.spec.max_file:
            limit = show_size(self.spec.max_file)
            raise PullRefused(f"has {size_bytes:,} bytes, more than `max_file`, which is {limit}")
        if not copied and size_bytes > self._bytes_left:
            raise self._full()

    def spend(self, size_bytes: int) -> None:
        """Count bytes that were copied. Raises PullSpent when there are more than `max_pull`."""
        self._bytes_left -= size_bytes
        if self._bytes_left < 0:
            raise self._full()

    def _full(self) -> PullSpent:
        limit = show_size(self.spec.max_pull)
        return PullSpent(f"does not fit into this pull's `max_pull` of {limit}")

    def fetch_each(self, candidates: Sequence[Candidate]) -> Iterator[FetchedFile]:
        """Yield the files that can be had; note the others, and what the budgets leave.

        Files that never failed go first, new ones before those of which only a request shows
        whether they changed: none that cannot be had, or takes long, keeps others waiting for ever.

        Args:
            candidates: the files in the order of their names.
        """
        order = sorted(self._due(candidates), key=self._urgency)
        in_a_row = 0
        for index, candidate in enumerate(order):
            try:
                self.seconds_for_file()
                fetched = candidate.fetch() if index < _MOST_FILES else None
            except PullFailed as failed:
                if self.breaker.tripped:
                    raise
                self.note(candidate.origin, failed, candidate.version)
                in_a_row += not isinstance(failed, PullRefused)
                index += 1
                if not isinstance(failed, PullSpent) and in_a_row < _MOST_IN_A_ROW:
                    continue
            else:
                in_a_row = 0
                if fetched is not None:
                    yield fetched
                if index < _MOST_FILES:
                    continue
            self._leave(order[index:])
            return

    def _due(self, candidates: Sequence[Candidate]) -> Iterator[Candidate]:
        for candidate in candidates:
            before = self._failures.get(self.identify(candidate.origin))
            same = before is not None and before.version == candidate.version
            if before is not None and same and self.now < before.retry_at:
                self.bad.append(before)
            else:
                yield candidate

    def _urgency(self, candidate: Candidate) -> tuple[int, bool]:
        identity = self.identify(candidate.origin)
        before = self._failures.get(identity)
        asks = not candidate.version and identity in self.seen
        return before.failures if before else 0, asks

    def _leave(self, candidates: Sequence[Candidate]) -> None:
        self.rest = len(candidates)
        later = self.spec.schedule.next_due(self.now)
        for candidate in candidates:
            before = self._failures.get(self.identify(candidate.origin))
            if before is not None:
                again = max(before.retry_at, later)
                self.bad.append(before.model_copy(update={"retry_at": again}))

    def note(self, origin: str, failed: PullFailed, version: str = "") -> None:
        """Note a file that cannot be had.

        Args:
            origin: where it is, as it may be stored.
            failed: the reason.
            version: as the list gives it.
        """
        before = self._failures.get(self.identify(origin))
        failures = 1 + (before.failures if before else 0)
        refused = isinstance(failed, PullRefused | PullSpent)
        again = next_file_try(self.spec, failures, self.now, refused=refused)
        self.bad.append(
            BadFile(
                origin=origin,
                version=version,
                reason=one_line(str(failed)),
                failures=failures,
                retry_at=again,
            )
        )

    def bad_to_keep(self) -> tuple[BadFile, ...]:
        """Return the bad files that an event names, those that failed least often first."""
        return tuple(sorted(self.bad, key=lambda file: (file.failures, file.origin))[:_MOST_BAD])


def one_line(text: str) -> str:
    """Return a message from outside as one line of printable characters, cut to a length."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(plain.split())[:_REASON_CHARACTERS]


def make_file_name(pull: int, index: int, name: str) -> str:
    """Return a file's name in a corpus: unique, in the order of pulling, and safe in any store.

    Args:
        pull: number of the pull.
        index: number of the file in the pull.
        name: the file's name at its origin.
    """
    return f"{pull:06d}-{index:06d}-{_plain(name.rpartition('/')[2])}"


def _plain(base: str) -> str:
    return _ODD.sub("-", base)[-_LONGEST:]
