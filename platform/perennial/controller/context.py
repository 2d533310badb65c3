"""Open a run: its file, store, inbox, ledger and observers."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from perennial import corpora
from perennial.config import RunSpec
from perennial.config.changes import check_held, check_pinned
from perennial.controller.leases import Leases
from perennial.controller.observer import ObservedRun, RunIds, RunObserver
from perennial.controller.ray_cluster import TrunkWorkers, check_fits, use_ray
from perennial.errors import InvalidTransition, StaleDecision, Superseded
from perennial.evaluation.tasks import read_task
from perennial.runs.events import Event, Failed, Opened, TookOver
from perennial.runs.ledger import Ledger, now
from perennial.runs.state import RunState
from perennial.runs.worker_starts import WorkerStart, note_start
from perennial.store import Store, open_run_store, open_store
from perennial.training.checkpoint.ownership import Fence

if TYPE_CHECKING:
    from perennial.corpora import CorpusManifest
    from perennial.mixture import StageMix
    from perennial.training.job import Job
    from perennial.training.ray.progress_actor import Progress


class WorkerStarts(RunObserver):
    """Keeps the start of every worker group in the store, for the report."""

    def job_progressed(self, work: ObservedRun, job: Job, progress: Progress) -> None:
        """Append the starts since the last call."""
        for step, workers in progress.started:
            note_start(work.store, job.folder, WorkerStart(now(), step, workers))


class Workspace:
    """A run that is open: what a command reads and writes goes through here.

    Reading changes nothing. A process that writes as the controller calls `take_charge` first, one
    that tokenises is `ingesting`: each holds a lease until `close`, or until it stands down.

    Args:
        spec: the run file.
        where: path of the run file, for messages.
        observers: follow what the controller does.
        run_ids: gives the ids under which a tracker keeps stages and releases.
        verb: what this process does, for those who find the run held.
        take_over: take the leases of processes that live.
    """

    def __init__(
        self,
        spec: RunSpec,
        where: str,
        observers: Sequence[RunObserver] = (),
        run_ids: RunIds | None = None,
        *,
        verb: str = "run",
        take_over: bool = False,
    ) -> None:
        self.where = where
        self.run_ids = run_ids or RunIds()
        self.observers = (*observers, WorkerStarts())
        self._noticed: set[tuple[RunObserver, type[Exception]]] = set()
        self.store: Store = open_run_store(spec.store)
        self.spec = spec.model_copy(update={"store": self.store.url})
        self.inbox: Store = open_store(spec.inbox) if spec.inbox else self.store.sub("inbox")
        self.ledger = Ledger(self.store, self.log)
        self.workers = TrunkWorkers()
        self.setbacks: dict[str, Failed] = {}
        """releases by policy that failed in this process, by name, with the time of the next try"""
        self.undecided = ""
        """why it cannot be decided which releases are due; "" where it can"""
        self.waiting: tuple[str, ...] = ()
        """why stages wait though their corpora are ready: limits, and users who accept them"""
        self._epoch = 0
        self._leases = Leases(self.store, self.ledger, self.log, verb, insists=take_over)

    @property
    def state(self) -> RunState:
        """Return the run's state as of the last read."""
        return self.ledger.state

    @property
    def store_id(self) -> str:
        """Return what names the store wherever it lies; "" before the run was opened."""
        return self.ledger.store_id

    def notify(self, call: Callable[[RunObserver], None]) -> None:
        """Call every observer; one that fails becomes a notice and changes nothing of the run.

        A kind of failure is shown once for each observer, because hooks are called at every step.
        """
        for observer in self.observers:
            try:
                call(observer)
            except Exception as failed:
                kind = type(failed)
                if (observer, kind) not in self._noticed:
                    # Before the line: the observer may be the one that cannot show it.
                    self._noticed.add((observer, kind))
                    name = type(observer).__name__
                    self.log(f"notice: {name} failed ({kind.__name__}: {failed})")

    def log(self, text: str) -> None:
        """Show a line to the user."""
        self.notify(lambda observer: observer.message(text))

    def leave_undecided(self, reason: str) -> None:
        """Keep why it cannot be decided which releases are due, and show it where it is new."""
        if reason and reason != self.undecided and self.in_charge:
            self.log(f"no release by policy: {reason}; the trunk continues")
        self.undecided = reason

    def leave_waiting(self, reasons: Sequence[str]) -> None:
        """Keep why stages wait though their corpora are ready, and show what is new of it."""
        for reason in reasons:
            if reason not in self.waiting:
                self.log(reason)
        self.waiting = tuple(reasons)

    @property
    def in_charge(self) -> bool:
        """Return whether this process took charge of the run."""
        return self._epoch > 0

    def check(self) -> None:
        """Check everything that can be wrong before compute starts; writes nothing.

        Raises:
            InputError: the machine, the store, the run file or the model does not fit.
        """
        self.store.check()
        check_fits(self.spec.training, os.cpu_count() or 1)
        for observer in self.observers:
            observer.check(self)
        self.check_run()
        self.check_model()
        self.check_fill_tokens()

    def check_run(self) -> None:
        """Check run file, ledger and tasks, whatever the machine; writes nothing."""
        self._check_pinned(self.ledger.read())
        for task in self.spec.evaluation.tasks:
            read_task(task)

    def _check_pinned(self, state: RunState) -> None:
        if state.spec is not None:
            check_pinned(self.where, self.store.url, state.spec, self.spec)

    def check_unfinished(self) -> None:
        """Refuse settings under which an unfinished stage would go on otherwise than it began."""
        for stage in self.state.unfinished:
            if self.state.corpora[stage.corpora[0]].stands_at == "training":
                check_held(stage.name, stage.settings, self.spec, self.where)

    def check_model(self) -> None:
        """Check that the model fits the named tokenizer and the sequence length."""
        from perennial.training.model.config import check_vocabulary, model_config
        from perennial.training.model.initial import has_model
        from perennial.training.model.tensor_parallel import check_divisible

        spec = self.spec
        path, named = spec.tokenizer.path, None
        if spec.model.path is not None and has_model(self.store):
            return  # imported, when all this was checked
        if path is not None:
            its = spec.tokenizer
            borders = (its.end_of_document, its.begin_of_document)
            named = corpora.find_converted(self.store, path, *borders)
            named = named or corpora.read_tokenizer(path, *borders)
        vocabulary = named.vocabulary if named else spec.tokenizer.vocabulary or 0
        config = model_config(spec.model, vocabulary, 0, spec.corpora.sequence_length)
        check_divisible(config, spec.training.tensor_parallel)
        model = spec.model.path
        if model is not None and path not in (model, f"{model.rstrip('/')}/tokenizer.json"):
            check_vocabulary(config, model, vocabulary)

    def check_fill_tokens(self) -> None:
        """Check that the tokenizer has the tokens that fill-in-the-middle needs."""
        from perennial.corpora.fill_in_the_middle import find_fill_tokens
        from perennial.corpora.manifest import FillInTheMiddle

        fill, its = self.spec.corpora.fill_in_the_middle, self.spec.tokenizer
        if fill is not None and its.path is not None:
            named = corpora.read_tokenizer(its.path, its.end_of_document, its.begin_of_document)
            find_fill_tokens(named, FillInTheMiddle(**fill.model_dump()))

    def import_model(self) -> None:
        """Copy the stored model that the run file names into the store.

        Raises:
            InputError: the model does not fit the run.
        """
        from perennial.training.model.initial import import_model

        tokenizer = corpora.load_tokenizer(self.store)
        imported = import_model(
            self.store,
            self.spec.model,
            tokenizer.vocabulary,
            tokenizer.end_of_document,
            self.spec.corpora.sequence_length,
        )
        start = self.spec.model.describe_start()
        self.log(f"the trunk starts from {start}: {imported.parameters:,} parameters")
        for what in imported.card.ignored if imported.card else ():
            self.log(f"notice: {self.spec.model.path}: {what} is not taken over into cards")

    def open_ledger(self) -> None:
        """Write the run file into the ledger, unless a process did before."""

        def open_run(state: RunState) -> Opened | None:
            # Not where the store is: it may be copied or moved, and knows no place.
            document = self.spec.model_dump(mode="json") | {"store": "."}
            opened = Opened(at=now(), spec=document, id=uuid.uuid4().hex)
            return opened if state.spec is None else None

        self.ledger.transact(open_run)
        # Another process may have opened the run since it was checked, under its own file.
        self._check_pinned(self.state)

    def take_charge(self) -> None:
        """Become the controller in charge; any other one stops before its next write.

        Raises:
            Busy: another controller is in charge, and lives.
        """
        if not self._epoch:
            self.open_ledger()
            self._epoch = self._leases.take_training()

    def take_whole(self) -> None:
        """Become the controller in charge while no process tokenises.

        Raises:
            Busy: another process is in charge or tokenises, and lives.
        """
        self.take_charge()
        self._leases.check_nobody_tokenises()

    def stand_down(self) -> None:
        """Give back what this process holds, and be a reader again."""
        self._epoch = 0
        self.workers.leave()
        self._leases.give_back()

    @contextmanager
    def ingesting(self, name: str) -> Iterator[None]:
        """Hold the lease of who tokenises, and record that the corpus is being tokenised.

        Waits while another process tokenises.

        Args:
            name: the corpus.

        Raises:
            StaleDecision: the corpus is in another state by now.
        """
        with self._leases.ingesting(name, self._check_in_charge):
            yield

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Hold a lease of a process that releases or measures, which erasures wait for.

        Raises:
            Busy: another process has the whole store to itself.
        """
        with self._leases.beside():
            yield

    def refresh(self) -> RunState:
        """Read what other processes wrote.

        Raises:
            Superseded: another controller took charge.
        """
        state = self.ledger.read()
        self._check_in_charge(state)
        return state

    def _check_in_charge(self, state: RunState) -> None:
        if self._epoch and state.epoch != self._epoch:
            raise Superseded("another controller took charge of this run; this one stops")
        self._leases.check_ingesting(state)

    def fence(self) -> Fence:
        """Return the check by which workers commit only while this controller is in charge."""
        return self.ledger.fence(TookOver.model_fields["kind"].default)

    def record(self, event: Event) -> None:
        """Write what happened, whatever users decided meanwhile about other corpora.

        Raises:
            Superseded: another controller took charge.
            StaleDecision: a decision was written first, and the event cannot follow it.
            Busy: the run is mended now.
        """

        self._leases.check_repairing()

        def unless_superseded(state: RunState) -> Event:
            self._check_in_charge(state)
            return event

        try:
            self.ledger.transact(unless_superseded)
        except InvalidTransition as impossible:
            raise StaleDecision(str(impossible)) from None

    def decide(self, event: Event) -> None:
        """Write a decision that rests on the whole state as of the last read.

        Raises:
            Superseded: another controller took charge.
            StaleDecision: anything else was written since the last read.
            Busy: the run is mended now.
        """
        self._leases.check_repairing()
        number = self.ledger.next

        def unless_changed(state: RunState) -> Event:
            self._check_in_charge(state)
            if self.ledger.next != number:
                raise StaleDecision(f"{self.ledger.key(number)} was written meanwhile")
            return event

        self.ledger.transact(unless_changed)

    def amend(self, event: Event) -> None:
        """Write what a user decided or measured, whichever controller is in charge.

        Raises:
            InvalidTransition: it cannot follow.
            Busy: the run is mended now.
        """
        self._leases.check_repairing()
        self.ledger.transact(lambda _: event)

    def check_repairing(self) -> None:
        """Raise Busy where another process has the whole store to itself."""
        self._leases.check_repairing()

    def use_ray(self) -> None:
        """Connect to a Ray cluster, or start a local one."""
        use_ray(self.spec.training)

    def close(self) -> None:
        """Give back what this process holds, and let the observers deliver what is left."""
        self.stand_down()
        self.notify(lambda observer: observer.closed())

    def manifests(self, of: StageMix | None = None) -> dict[str, CorpusManifest]:
        """Return the manifests of the corpora in a mix, or of all ingested ones, by name."""
        if of is None:
            names = [c.name for c in self.state.corpora.values() if c.sequences]
        else:
            names = [*dict.fromkeys([*of.corpora, *(source.corpus for source in of.sources)])]
        return {name: corpora.read_manifest(self.store, name) for name in names}
