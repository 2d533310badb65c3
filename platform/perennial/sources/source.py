"""A source: pulls what is new when it is due, and lands it when it is enough. Safe to kill."""

from __future__ import annotations

import hashlib
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from perennial.config import SourceSpec
from perennial.corpora import land_files
from perennial.corpora.landing import StoredLandingFile
from perennial.errors import InputError, LogGap
from perennial.sources import snapshots
from perennial.sources.address import hide_addresses
from perennial.sources.base import FetchedFile, Pull, make_file_name, one_line
from perennial.sources.breaker import Breaker
from perennial.sources.command import fetch_command
from perennial.sources.events import (
    AttemptFailed,
    BadFile,
    CorpusChosen,
    CorpusLanded,
    FilesPulled,
    PulledFile,
    SourceEvent,
    decode_event,
    encode_event,
)
from perennial.sources.index import fetch_index
from perennial.sources.prefix import fetch_prefix
from perennial.sources.state import SourceState, is_enough, make_corpus_name, next_due
from perennial.store import Store
from perennial.store.append_log import Log

Notify = Callable[[str], None]
_BAD_SHOWN = 5  # in notices, each with a line of its own
_TROUBLE = 3
"""failures in a row after which what fails is not likely to pass by itself"""
_PULLED = re.compile(r"(pulled/(\d{6,})-[^/]+)/")


@dataclass(frozen=True)
class BadFileStatus:
    """A file that a source cannot get.

    Attributes:
        origin: where it is.
        reason: why it cannot be had.
        failures: pulls in a row that could not get it.
        next_try: ISO 8601.
    """

    origin: str
    reason: str
    failures: int
    next_try: str


@dataclass(frozen=True)
class SourceStatus:
    """Status of a source for display; times are ISO 8601, "" where there is none.

    Attributes:
        error: why the source as a whole failed; "" for no failure.
        bad_files: files that it cannot get while others are.
        more_bad: bad files beyond those.
        rest: files that the last pull left for the next one.
    """

    name: str
    next_due: str
    pulled_at: str
    watermark: str
    waiting_bytes: int
    landed: tuple[str, ...]
    error: str
    bad_files: tuple[BadFileStatus, ...] = ()
    more_bad: int = 0
    rest: int = 0

    @property
    def problem(self) -> str:
        """Return what is wrong in one line, "" for nothing."""
        count = len(self.bad_files) + self.more_bad
        parts = [self.error]
        if self.bad_files:
            files = "1 file cannot" if count == 1 else f"{count} files cannot"
            parts.append(f"{files} be had: {self.bad_files[0].reason}")
        parts += [f"{self.rest} files left for the next pull"] if self.rest else []
        return "; ".join(filter(None, parts))


class DataSource:
    """A source, with its log at `sources/<name>/log/` and pulled files at `.../pulled/`.

    Args:
        name: the source's name in the run file.
        spec: the source in the run file.
        store: the run's store.
        inbox: the store that corpora land in.
        least_bytes: bytes below which no stage can be made; the source waits for more.
    """

    def __init__(
        self, name: str, spec: SourceSpec, store: Store, inbox: Store, least_bytes: int
    ) -> None:
        self.name = name
        self.state = SourceState(secrets=frozenset(spec.secrets))
        self._spec = spec
        self._store = store.sub(f"sources/{name}")
        self._inbox = inbox
        self._least_bytes = least_bytes
        self._log = Log(self._store, "log")
        self._events = 0  # of the log that were applied
        self._breaker = Breaker()
        self._notified = ""
        self._unwritten = ""

    def read(self) -> SourceState:
        """Apply what was written to the log since the last read; return the state.

        The first read begins at the newest snapshot.

        Raises:
            InputError: an entry is missing or cannot be read.
        """
        if not self._events:
            stored = snapshots.read_newest(self._store, self._log, self.state.secrets)
            if stored is not None:
                self.state, self._events = stored
        try:
            for _, data in self._log.tail(self._events):
                self._fold(decode_event(data))
        except LogGap:
            raise self._broken("does not exist, and later entries do") from None
        except ValueError as wrong:
            # The first line alone: the next ones repeat the entry.
            problem = one_line(str(wrong).partition("\n")[0])
            raise self._broken(f"is no entry of this log ({problem})") from None
        return self.state

    def _broken(self, problem: str) -> InputError:
        return InputError(
            f"{self._store.url}/{self._log.key(self._events)}", "", f"this entry {problem}",
            "restore it from a copy of the store, or use the later version of Perennial that "
            "wrote it; without either, move it and all later entries away, and what was pulled "
            "since then is pulled again",
            code="source-log-broken",
        )  # fmt: skip

    def status(self, now: datetime) -> SourceStatus:
        """Return the source's status; reads only, and shows a failure instead of raising it."""
        try:
            state = self.read()
            status = SourceStatus(
                self.name,
                next_due(self._spec, state, now).isoformat(),
                state.pulled_at.isoformat() if state.pulled_at else "",
                hide_addresses(state.watermark),
                state.waiting_bytes,
                tuple(state.landed),
                hide_addresses(state.error),
            )
        except Exception as failed:
            # Any class: what is wrong with one source must not hide the rest of the run.
            return SourceStatus(self.name, "", "", "", 0, (), _describe(failed))
        files = tuple(
            BadFileStatus(file.origin, file.reason, file.failures, file.retry_at.isoformat())
            for file in state.bad
        )
        return replace(status, bad_files=files, more_bad=state.more_bad, rest=state.rest)

    def troubles(self) -> Iterator[tuple[str, str]]:
        """Yield what kept failing as of the last `run_due`, as pairs of its name and one line.

        The name stays as long as nothing of it was mended, in every process.
        """
        state = self.state
        if self._unwritten:
            yield "log", self._unwritten
            return
        if state.failures >= _TROUBLE:
            yield f"pull-{state.pulls}-{len(state.names)}", hide_addresses(state.error)
        for file in state.bad:
            if file.failures >= _TROUBLE:
                name = hashlib.sha256(file.origin.encode()).hexdigest()[:16]
                yield f"file-{name}", file.reason

    def stop(self) -> None:
        """Break off what another thread pulls; the next process pulls it again."""
        self._breaker.trip()

    def run_due(self, now: datetime, notify: Notify) -> list[str]:
        """Do what is due: finish a landing that was killed, pull, land.

        A failure is written to the log and tried again later; it is never raised.

        Args:
            now: the current time.
            notify: gets a line for the user about everything that was done or failed.

        Returns:
            Names of the corpora that landed.
        """
        landed: list[str] = []
        self._unwritten = ""
        try:
            if self.read().failed_at is None or self._due(now):
                landed += self._land(now, notify)
                if self._due(now):
                    self._pull(now, notify)
                landed += self._land(now, notify)
        except Exception as error:
            # Any class: a source depends on networks, other people's pages and programs, and
            # none of their failures may stop the training that runs beside it.
            self._fail(error, now, notify)
        return landed

    def _due(self, now: datetime) -> bool:
        return now >= next_due(self._spec, self.state, now)

    def _fail(self, error: Exception, now: datetime, notify: Notify) -> None:
        if self._breaker.tripped:
            return  # broken off by `stop`, which is no failure of the source
        reason = _describe(error)
        text = f"source {self.name} failed ({reason})"
        try:
            self._append(AttemptFailed(at=now, reason=reason), lambda: True)
            again = next_due(self._spec, self.state, now)
            text += f"; again at {again:%Y-%m-%d %H:%M:%S} UTC"
        except Exception as failed:
            # The log is broken, or the store does not answer: nothing can be written.
            why = _describe(failed)
            text += ", and its log cannot be written" + ("" if why == reason else f" ({why})")
            self._unwritten = text
            if text == self._notified:
                return  # the same at every look
        self._notified = text
        notify(text)

    def _pull(self, now: datetime, notify: Notify) -> None:
        before, bad_before = self.state.pulls, self.state.bad
        self._sweep()
        folder = f"pulled/{before:06d}-{uuid.uuid4().hex[:8]}"
        try:
            pulled = self._copy(now, before, folder)
            encode_event(pulled)  # while it is known that no entry names the folder
        except Exception:
            # After a kill the folder stays, and `_sweep` of a later pull removes it.
            self._store.remove(folder)
            raise
        if not self._append(pulled, lambda: self.state.pulls == before):
            self._store.remove(folder)  # another process pulled the same files
        else:
            for line in _describe_pull(pulled, bad_before):
                notify(f"source {self.name}: {line}")

    def _copy(self, now: datetime, number: int, folder: str) -> FilesPulled:
        """Copy everything that is new into a folder of the store."""
        with tempfile.TemporaryDirectory(prefix="perennial-pull-") as scratch:
            pull = Pull(
                spec=self._spec,
                seen=self.state.seen,
                bad_before=self.state.bad,
                folder=Path(scratch),
                watermark=self.state.watermark,
                now=now,
                breaker=self._breaker,
            )
            files = tuple(
                self._keep(folder, make_file_name(number, index, fetched.name), fetched)
                for index, fetched in enumerate(self._fetch(pull))
            )
        return FilesPulled(
            at=now,
            folder=folder,
            files=files,
            watermark=pull.watermark,
            passed_over=pull.passed_over,
            bad=pull.bad_to_keep(),
            more_bad=len(pull.bad) - len(pull.bad_to_keep()),
            rest=pull.rest,
        )

    def _fetch(self, pull: Pull) -> Iterator[FetchedFile]:
        spec = self._spec
        if spec.prefix is not None:
            return fetch_prefix(spec.prefix, pull)
        if spec.index is not None:
            return fetch_index(spec.index, pull)
        return fetch_command(spec.command or (), pull)

    def _keep(self, folder: str, name: str, fetched: FetchedFile) -> PulledFile:
        with fetched.local.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        size = fetched.local.stat().st_size
        self._store.upload(fetched.local, f"{folder}/{name}")
        fetched.local.unlink()
        return PulledFile(
            name=name,
            origin=fetched.origin,
            version=fetched.version,
            size_bytes=size,
            sha256=sha256,
        )

    def _land(self, now: datetime, notify: Notify) -> list[str]:
        """Land what was chosen before a kill, or what is enough by now."""
        if self.state.chosen is None:
            if not is_enough(self._spec, self.state, now, self._least_bytes):
                return []
            self._choose(now)
        landed = []
        while (chosen := self.state.chosen) is not None:
            pulls = list(self.state.landing)
            try:
                land_files(self._inbox, chosen.corpus, _files(pulls, self._store))
            except InputError as refused:
                if refused.code != "corpus-differs":
                    raise
                # Another producer landed a corpus of that name; the same files get another one.
                self._choose(now, instead_of=chosen)
                continue
            except FileNotFoundError:
                if self.read().chosen == chosen:
                    raise
                continue  # another process has landed it and removed its own copy
            if self._append(
                CorpusLanded(at=now, corpus=chosen.corpus), lambda: self.state.chosen == chosen
            ):
                landed.append(chosen.corpus)
                count = sum(len(pull.files) for pull in pulls)
                notify(f"source {self.name}: landed {chosen.corpus}, {count} files")
            for pull in pulls:
                self._store.remove(pull.folder)
        return landed

    def _choose(self, now: datetime, instead_of: CorpusChosen | None = None) -> None:
        """Record the name and the pulls of the next corpus, before a byte is copied.

        A landing that is killed is then repeated with the same files under the same name.
        """
        taken = {info.key.partition("/")[0] for info in self._inbox.list("")}
        name = make_corpus_name(self.name, now, taken | set(self.state.names))
        pulls = self.state.pulls
        self._append(
            CorpusChosen(at=now, corpus=name, pulls=pulls),
            # Also not when another process chose and landed the same files meanwhile.
            lambda: (
                (self.state.chosen, self.state.pulls) == (instead_of, pulls)
                and bool(self.state.waiting or self.state.landing)
            ),
        )

    def clear(self) -> None:
        """Remove the folders of pulls that were killed and of corpora that landed.

        Raises:
            InputError: an entry of the log is missing or cannot be read.
        """
        self.read()
        self._sweep()

    def _sweep(self) -> None:
        """Remove the folders that no pull of the state as of the last read names."""
        kept = {pull.folder for pull in (*self.state.waiting, *self.state.landing)}
        matches = [_PULLED.match(info.key) for info in self._store.list("pulled")]
        folders = {match[1]: int(match[2]) for match in matches if match}
        for folder, number in folders.items():
            if folder not in kept and number < self.state.pulls:
                self._store.remove(folder)

    def _append(self, event: SourceEvent, is_valid: Callable[[], bool]) -> bool:
        """Append an event unless another process made it invalid; return whether it was appended.

        Args:
            event: the event.
            is_valid: checked before every try, against all that other processes wrote.
        """
        while True:
            self.read()  # raises where an entry is missing: nothing is written into a gap
            if not is_valid():
                return False
            data = encode_event(event)
            if self._log.append(self._events, data):
                self._fold(event)
                if not self._events % snapshots.EVERY_EVENTS:
                    snapshots.write(self._store, self.state, self._events, data)
                return True

    def _fold(self, event: SourceEvent) -> None:
        self.state.apply(event)
        self._events += 1


def _files(pulls: list[FilesPulled], store: Store) -> list[StoredLandingFile]:
    return [
        StoredLandingFile(
            file.name, file.size_bytes, store, f"{pull.folder}/{file.name}", sha256=file.sha256
        )
        for pull in pulls
        for file in pull.files
    ]


def _describe(error: Exception) -> str:
    """Return the one line of a failure that the user can do something about."""
    return hide_addresses(one_line(str(error)) or type(error).__name__)


def _describe_pull(pulled: FilesPulled, before: Sequence[BadFile]) -> Iterator[str]:
    """Yield lines about a pull that did or left out anything.

    Args:
        pulled: the pull.
        before: bad files of the pull before; those that were not tried again are not repeated.
    """
    if pulled.files or pulled.passed_over or pulled.rest:
        size = sum(file.size_bytes for file in pulled.files)
        over = f", passed over {pulled.passed_over}" if pulled.passed_over else ""
        rest = f", left {pulled.rest} for the next pull" if pulled.rest else ""
        yield f"pulled {len(pulled.files)} files, {size:,} bytes{over}{rest}"
    known = {(file.origin, file.failures) for file in before}
    tried = [file for file in pulled.bad if (file.origin, file.failures) not in known]
    for file in tried[:_BAD_SHOWN]:
        yield f"{file.reason}; again at {file.retry_at:%Y-%m-%d %H:%M:%S} UTC"
    more = len(tried) - _BAD_SHOWN + pulled.more_bad
    if more > 0:
        yield f"{more} more files cannot be had"
