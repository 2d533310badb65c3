"""A source: pulls what is new when it is due, and lands it when it is enough. Safe to kill."""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from perennial.config import SourceSpec
from perennial.corpora import FileToLand, land_stored
from perennial.errors import InputError
from perennial.sources.base import FetchedFile, Pull, make_file_name
from perennial.sources.command import fetch_command
from perennial.sources.events import (
    AttemptFailed,
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
from perennial.tracking.redaction import hide_secrets

Notify = Callable[[str], None]
_REASON_CHARACTERS = 500


@dataclass(frozen=True)
class SourceStatus:
    """Status of a source for display; times are ISO 8601, "" where there is none."""

    name: str
    next_due: str
    pulled_at: str
    watermark: str
    waiting_bytes: int
    landed: tuple[str, ...]
    error: str


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
        self.state = SourceState()
        self._spec = spec
        self._store = store.sub(f"sources/{name}")
        self._inbox = inbox
        self._least_bytes = least_bytes
        self._log = Log(self._store, "log")
        self._events = 0  # of the log that were applied

    def read(self) -> SourceState:
        """Apply what was written to the log since the last read; return the state."""
        for _, data in self._log.tail(self._events):
            self._fold(decode_event(data))
        return self.state

    def status(self, now: datetime) -> SourceStatus:
        """Return the source's status; reads only."""
        state = self.read()
        return SourceStatus(
            self.name,
            next_due(self._spec, state, now).isoformat(),
            state.pulled_at.isoformat() if state.pulled_at else "",
            state.watermark,
            state.waiting_bytes,
            tuple(state.landed),
            state.error,
        )

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
        text = " ".join(str(error).split()) or type(error).__name__
        reason = hide_secrets(text)[:_REASON_CHARACTERS]
        try:
            self._append(AttemptFailed(at=now, reason=reason), lambda: True)
        except OSError:
            notify(f"source {self.name} failed ({reason}), and its log cannot be written")
            return
        again = next_due(self._spec, self.state, now)
        notify(f"source {self.name} failed ({reason}); again at {again:%Y-%m-%d %H:%M:%S} UTC")

    def _pull(self, now: datetime, notify: Notify) -> None:
        before = self.state.pulls
        self._sweep()
        folder = f"pulled/{before:06d}-{uuid.uuid4().hex[:8]}"
        try:
            pulled = self._copy(now, before, folder)
        except Exception:
            # After a kill the folder stays, and `_sweep` of a later pull removes it.
            self._store.remove(folder)
            raise
        if not self._append(pulled, lambda: self.state.pulls == before):
            self._store.remove(folder)  # another process pulled the same files
        elif pulled.files or pulled.passed_over:
            size = sum(file.size_bytes for file in pulled.files)
            over = f", passed over {pulled.passed_over}" if pulled.passed_over else ""
            notify(f"source {self.name}: pulled {len(pulled.files)} files, {size:,} bytes{over}")

    def _copy(self, now: datetime, number: int, folder: str) -> FilesPulled:
        """Copy everything that is new into a folder of the store."""
        with tempfile.TemporaryDirectory(prefix="perennial-pull-") as scratch:
            pull = Pull(self._spec.match, self.state.seen, Path(scratch), self.state.watermark)
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
        )

    def _fetch(self, pull: Pull) -> Iterator[FetchedFile]:
        spec = self._spec
        if spec.prefix is not None:
            return fetch_prefix(spec.prefix, pull)
        if spec.index is not None:
            return fetch_index(spec.index, pull)
        return fetch_command(spec.command or (), spec.timeout.total_seconds(), pull)

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
                land_stored(self._inbox, chosen.corpus, _files(pulls), self._store)
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
                notify(f"source {self.name}: landed {chosen.corpus}, {len(_files(pulls))} files")
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
            lambda: self.state.chosen == instead_of and self.state.pulls == pulls,
        )

    def _sweep(self) -> None:
        """Remove the folders of pulls that were killed and of corpora that landed."""
        kept = {pull.folder for pull in (*self.state.waiting, *self.state.landing)}
        for folder in {"/".join(info.key.split("/")[:2]) for info in self._store.list("pulled")}:
            number = int(folder.removeprefix("pulled/")[:6])
            if folder not in kept and number < self.state.pulls:
                self._store.remove(folder)

    def _append(self, event: SourceEvent, is_valid: Callable[[], bool]) -> bool:
        """Append an event unless another process made it invalid; return whether it was appended.

        Args:
            event: the event.
            is_valid: checked before every try, against all that other processes wrote.
        """
        while is_valid():
            if self._log.append(self._events, encode_event(event)):
                self._fold(event)
                return True
            self.read()
        return False

    def _fold(self, event: SourceEvent) -> None:
        self.state.apply(event)
        self._events += 1


def _files(pulls: list[FilesPulled]) -> list[FileToLand]:
    return [
        FileToLand(f"{pull.folder}/{file.name}", file.name, file.size_bytes, file.sha256)
        for pull in pulls
        for file in pull.files
    ]
