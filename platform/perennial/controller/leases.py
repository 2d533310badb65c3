"""Take and give back the leases of a run: who trains, who tokenises, who works beside them.

A claim is an event of the ledger, so of any number of processes one has it. The heartbeat decides
only whether to claim from a process that has the lease: not while it lives, unless a user insists.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from perennial.errors import Busy, InvalidTransition, StaleDecision, Superseded
from perennial.runs import lease as beats
from perennial.runs.events import Ingesting, TookOver
from perennial.runs.lease import Heartbeat, HeartbeatWatch, Lease
from perennial.runs.ledger import Ledger, now
from perennial.runs.state import RunState
from perennial.store import Store

_POLL_SECONDS = 1.0


class Leases:
    """The leases that this process holds.

    Args:
        store: the run's store.
        ledger: the run's ledger.
        log: shows a line to the user.
        verb: what this process does.
        insists: whether to claim from processes that live.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        log: Callable[[str], None],
        verb: str,
        *,
        insists: bool,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._log = log
        self._verb = verb
        self._insists = insists
        self._training: Lease | None = None
        self._ingest: Lease | None = None

    def take_training(self) -> int:
        """Claim the training lease; return the epoch of the claim.

        Raises:
            Busy: another process holds it, and lives.
        """
        mine = self._begin("training")
        who = f"{socket.gethostname()}:{os.getpid()}"

        def claim(state: RunState) -> TookOver:
            self._await(mine, state.lease)
            return TookOver(at=now(), epoch=state.epoch + 1, controller=who, lease=mine.key)

        try:
            claimed = self._ledger.transact(claim)
        except BaseException:
            mine.give_back()
            raise
        assert claimed is not None
        self._training = mine
        self._insists = False  # a user insisted once; who takes over from us is not overruled
        mine.sweep()
        return claimed.epoch

    @contextmanager
    def ingesting(self, name: str, check: Callable[[RunState], None]) -> Iterator[None]:
        """Hold the ingest lease for a corpus; see `Workspace.ingesting`.

        Args:
            name: the corpus.
            check: raises when this process lost another claim.
        """
        mine = self._begin("ingesting")

        def claim(state: RunState) -> Ingesting:
            check(state)
            # Before it waits: the other process may be at the next corpus, and this one ready.
            state.check(Ingesting(at=now(), corpus=name, lease=mine.key))
            if state.ingesting is not None:
                self._await(mine, state.ingest_lease, waits=True)
            return Ingesting(at=now(), corpus=name, lease=mine.key)

        try:
            try:
                self._ledger.transact(claim)
            except InvalidTransition as impossible:
                raise StaleDecision(str(impossible)) from None
            mine.sweep()
            self._ingest = mine
            yield
        finally:
            self._ingest = None
            mine.give_back()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Hold a lease of a process that releases or measures beside the trunk.

        Raises:
            Busy: another process has the whole store to itself.
        """
        mine = self._begin(beats.BESIDE)
        try:
            mine.sweep()
            yield
        finally:
            mine.give_back()

    def check_ingesting(self, state: RunState) -> None:
        """Raise Superseded where another process took the ingest lease."""
        if self._ingest is not None and state.ingest_lease != self._ingest.key:
            raise Superseded("another process took over the ingest; this one stops")

    def check_nobody_tokenises(self) -> None:
        """Raise Busy where another process tokenises a corpus; this one holds the training lease.

        Raises:
            Busy: another process holds the ingest lease, and lives.
        """
        assert self._training is not None
        if holder := beats.living_holder(self._store, self._training, "ingesting"):
            raise Busy(f"{holder} tokenises a corpus of this run: wait until it ends, or stop it")

    def give_back(self) -> None:
        """Give back the training lease."""
        if self._training is not None:
            self._training.give_back()
            self._training = None

    def _begin(self, name: str) -> Lease:
        # Before the claim, so that no process takes a lease whose holder had no time to write it.
        mine = Lease(self._store, name, beats.this_process(self._verb, now()))
        try:
            self._check_repairing(mine)
        except BaseException:
            mine.give_back()
            raise
        return mine

    def _check_repairing(self, mine: Lease) -> None:
        # Both write their lease before they look for the other's, so at least one sees the other.
        if holder := beats.living_holder(self._store, mine, beats.REPAIRING):
            raise Busy(f"{holder} has this run to itself: wait until it ends")

    def check_repairing(self) -> None:
        """Raise Busy where the run is mended now, and this process holds nothing that forbids it.

        Raises:
            Busy: another process mends the run.
        """
        if self._training or self._ingest:
            return
        if self._store.list(f"{beats.FOLDER}/{beats.REPAIRING}"):
            self._begin("asking").give_back()

    def _await(self, mine: Lease, key: str, *, waits: bool = False) -> None:
        """Return when a lease is free.

        Args:
            mine: a lease of this process, whose time of writing is the storage's present time.
            key: of the lease.
            waits: wait also for a holder that lives.

        Raises:
            Busy: its holder lives.
        """
        said = False
        watch = HeartbeatWatch(mine)
        first = beats.read_heartbeat(self._store, key)
        beat = first
        while beat is not None and not self._is_free(watch, beat):
            assert first is not None
            if not waits and (beat.modified != first.modified or beat.holder.is_here):
                raise Busy(
                    f"{beat.holder} has held this run since {beat.holder.since} and lives: "
                    "wait until it ends, stop it, or insist with --take-over"
                )
            if not said:
                self._log(f"waiting for {beat.holder}, which may have ended")
                said = True
            time.sleep(_POLL_SECONDS)
            mine.beat()
            beat = beats.read_heartbeat(self._store, key)

    def _is_free(self, watch: HeartbeatWatch, beat: Heartbeat) -> bool:
        return self._insists or watch.has_stopped(beat) or beat.holder.is_gone
