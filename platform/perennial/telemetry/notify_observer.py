"""Notify people of what happened to a run, from a thread beside the controller.

No hook waits for a notification. One that was sent is marked in the store, so that a process that
is started again does not repeat it; one that was killed before leaves it to the next.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

from perennial.causes import describe
from perennial.controller.observer import RunObserver
from perennial.redaction import hide_secrets
from perennial.runs.ledger import now
from perennial.telemetry.notice_channels import Channel, Undelivered, channels_of, read_secret
from perennial.telemetry.notices import Notice, describe_setbacks, list_conditions

if TYPE_CHECKING:
    from collections.abc import Callable

    from perennial.config.notify import Happening, NotifySpec
    from perennial.controller.observer import ObservedRun
    from perennial.runs.events import Released, Releasing
    from perennial.store import Store
    from perennial.training.job import Job
    from perennial.training.ray.progress_actor import Progress

FOLDER = "notified"


class NotifyObserver(RunObserver):
    """Sends what the run file asks for, by the ways that it gives.

    Args:
        spec: section `notify` of the run file.
    """

    def __init__(self, spec: NotifySpec) -> None:
        self._spec = spec
        self._channels = channels_of(spec)
        self._sent: set[str] = set()
        self._sender: _Sender | None = None
        self._progressed_at = 0.0
        self._step = 0
        self._job_ended = threading.Event()

    def check(self, work: ObservedRun) -> None:
        """Show a line for each secret that this process does not have; the run goes on."""
        for channel in self._channels:
            try:
                if channel.reference is not None:
                    read_secret(channel.reference)
            except Undelivered as missing:
                work.log(f"notice: notify.{channel.name}: {missing}; nothing is sent that way")

    def looked(self, work: ObservedRun) -> None:
        """Send a notification of a stage that a gate stopped, and of what failed."""
        self._job_ended.set()
        for on, mark, subject, compose in list_conditions(work.spec, work.state):
            if on in self._spec.events and mark not in self._sent:
                self._notify(work, on, subject, compose(), mark)
        for mark, name, text in describe_setbacks(work.setbacks):
            if mark not in self._sent:
                self._sent.add(mark)
                self._notify(work, "failure", name, text)

    def look_failed(self, work: ObservedRun, failure: Exception) -> None:
        """Send a notification why a look could do nothing; the same reason once."""
        reason = hide_secrets(describe(failure))
        if reason not in self._sent:
            self._sent.add(reason)
            text = f"a look at the inbox failed; the next one tries again\n{reason}"
            self._notify(work, "failure", work.spec.name, text)

    def source_in_trouble(self, work: ObservedRun, source: str, problem: str, episode: str) -> None:
        """Send a notification of a source that keeps failing, or a file of it, once an episode."""
        mark = f"source-{source}-{episode}"
        if mark not in self._sent:
            self._notify(work, "source", source, f"source {source} is in trouble\n{problem}", mark)

    def release_made(self, work: ObservedRun, claimed: Releasing, released: Released) -> None:
        """Send a notification of a release, with its held-out losses."""
        losses = [f"{name} {loss.nats_per_token:.3f}" for name, loss in released.losses.items()]
        lines = [f"release {released.name} is made: {released.folder}"]
        lines += [f"held-out nats per token: {', '.join(losses)}"] if losses else []
        self._notify(work, "release", released.name, "\n".join(lines))

    def promoted(self, work: ObservedRun, released: Released, alias: str) -> None:
        """Send a notification of an alias that moved to a release."""
        mark = f"promoted-{alias}-{len(work.state.aliases[alias])}"
        if mark not in self._sent:
            text = f"{alias} is release {released.name} now"
            self._notify(work, "release", released.name, text, mark)

    def job_began(self, work: ObservedRun, job: Job) -> None:
        """Begin to watch for steps."""
        self._job_ended.set()
        self._job_ended, self._progressed_at = threading.Event(), time.monotonic()
        self._step = job.first_step
        if "stall" in self._spec.events:
            watch = threading.Thread(
                target=self._watch, args=(work, job, self._job_ended), name="stall", daemon=True
            )
            watch.start()

    def job_progressed(self, work: ObservedRun, job: Job, progress: Progress) -> None:
        """Note that workers started, or took a step."""
        if progress.started or progress.rows:
            self._progressed_at = time.monotonic()
        if progress.rows:
            self._step = progress.rows[-1]["step"]

    def job_ended(self, work: ObservedRun, job: Job) -> None:
        """Watch no longer."""
        self._job_ended.set()

    def closed(self) -> None:
        """Send what is left, for a limited time."""
        self._job_ended.set()
        if self._sender is not None:
            self._sender.close()

    def _watch(self, work: ObservedRun, job: Job, ended: threading.Event) -> None:
        """Send a notification when a job makes no step, once for each time that it stands still."""
        limit, sent_for = self._spec.stall_after.total_seconds(), -1.0
        left = limit
        while not ended.wait(max(left, 0.01)):
            since = self._progressed_at
            left = since + limit - time.monotonic()
            if left <= 0:
                left = limit
                if sent_for != since:
                    sent_for = since
                    text = (
                        f"{job.name} has made no step for {limit:g} s; it is at step {self._step}"
                    )
                    self._notify(work, "stall", job.name, text)

    def _notify(
        self, work: ObservedRun, on: Happening, subject: str, text: str, mark: str = ""
    ) -> None:
        if on not in self._spec.events or not self._channels:
            return
        self._sent |= {mark} if mark else set()
        if self._sender is None:
            seconds = self._spec.timeout.total_seconds()
            self._sender = _Sender(self._channels, work.store, work.log, seconds)
        store = hide_secrets(work.store.url)
        self._sender.put(Notice(on, work.spec.name, store, subject, text, now(), mark))


class _Sender:
    """A thread that sends notifications one after the other, by all ways at once.

    Args:
        channels: the ways.
        store: where it is marked what was sent.
        log: shows a line to the user.
        seconds: longest time of a notification, and of the wait at the end.
    """

    def __init__(
        self, channels: list[Channel], store: Store, log: Callable[[str], None], seconds: float
    ) -> None:
        self._channels = channels
        self._store = store
        self._log = log
        self._seconds = seconds
        self._waiting: SimpleQueue[Notice | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="notifications", daemon=True)
        self._thread.start()

    def put(self, notice: Notice) -> None:
        """Take a notification; returns at once."""
        self._waiting.put(notice)

    def close(self) -> None:
        """Wait until all are sent, but not longer than one may take."""
        self._waiting.put(None)
        self._thread.join(self._seconds)
        if self._thread.is_alive():
            self._log(f"notice: notifications were not sent within {self._seconds:g} s")

    def _run(self) -> None:
        while (notice := self._waiting.get()) is not None:
            try:
                self._send(notice)
            except Exception as failure:  # of the store
                self._log(f"notice: a notification could not be marked ({describe(failure)})")

    def _send(self, notice: Notice) -> None:
        key = f"{FOLDER}/{hashlib.sha256(notice.mark.encode()).hexdigest()[:32]}.json"
        if notice.mark and self._store.exists(key):
            return
        taken: list[str] = []
        late = threading.Event()
        threads = [
            threading.Thread(target=self._try, args=(channel, notice, taken, late), daemon=True)
            for channel in self._channels
        ]
        deadline = time.monotonic() + self._seconds
        for thread in threads:
            thread.start()
        for thread, channel in zip(threads, self._channels, strict=True):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._failed(channel, notice, f"no answer within {self._seconds:g} s")
        late.set()
        if taken and notice.mark:
            self._store.create(key, json.dumps(notice.to_dict() | {"by": taken}).encode())

    def _try(
        self, channel: Channel, notice: Notice, taken: list[str], late: threading.Event
    ) -> None:
        try:
            channel.deliver(notice, self._seconds)
            taken.append(channel.name)
        except Undelivered as failure:
            if not late.is_set():  # else a line was shown already
                self._failed(channel, notice, str(failure))

    def _failed(self, channel: Channel, notice: Notice, why: str) -> None:
        self._log(f"notice: notify.{channel.name}: {notice.headline!r} was not sent ({why})")
