"""What trials of every search have in common: one is trained and measured once, under a claim."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from perennial.config.search import Child, Point
from perennial.errors import Superseded, TrainingStopped
from perennial.evaluation.finite import split_finite
from perennial.runs.events import Branched, Event, Tried
from perennial.runs.ledger import Ledger, now
from perennial.store import open_run_store

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.runs.state import RunState

P = TypeVar("P", Point, Child)


class TrialBench(ABC, Generic[P]):
    """Trains and measures the trials of one search; plain data, so that any process can.

    search: name of the search.
    spec: the run as it is without a search.
    claim: of this search; a process with a later claim takes it over.
    remedy: what to do about a trial whose loss is not a number.
    """

    search: str
    spec: RunSpec
    claim: int
    remedy: ClassVar[str]

    @property
    @abstractmethod
    def first_step(self) -> int:
        """Return the trunk step at which every trial begins."""

    @property
    @abstractmethod
    def measured(self) -> tuple[str, ...]:
        """Return the corpora on whose held-out documents trials are measured."""

    @abstractmethod
    def branched(self, point: P) -> Branched:
        """Return the trial of a point; only its time differs between two calls."""

    @abstractmethod
    def train(self, point: P, decided: Branched, step: int) -> tuple[str, int]:
        """Train a trial to a trunk step.

        Args:
            point: what it tries.
            decided: the trial, as it was begun.
            step: trunk step.

        Returns:
            The key of the checkpoint to measure, and the steps of an anneal that made it.
        """

    @abstractmethod
    def values_of(self, nats: Mapping[str, float]) -> dict[str, float]:
        """Return the objectives by name, from the held-out loss of each corpus."""

    def measure(self, point: P, steps: int) -> dict[str, float]:
        """Train a point's trial until it has `steps` steps and measure it, once.

        What the ledger has is not done again. Ray must be initialised.

        Args:
            point: what the trial tries.
            steps: optimizer steps after which it is measured.

        Returns:
            The objectives by name, in nats per token.

        Raises:
            Superseded: another process took the search over.
        """
        ledger = Ledger(open_run_store(self.spec.store), lambda line: None)
        decided = self.branched(point)
        if decided.trial not in ledger.read().searches.trials:
            self._write(ledger, decided)
        trial = ledger.state.searches.trials[decided.trial]
        step = self.first_step + steps
        done = trial.at(step)
        if done is not None:
            return done.values
        before = trial.tried[-1].step if trial.tried else self.first_step
        # As it was begun: its settings may not be those of a new trial.
        tried = self._tried(point, trial.branched, step, step - before)
        self._write(ledger, tried)
        return tried.values

    def _write(self, ledger: Ledger, event: Event) -> None:
        def unless_claimed(state: RunState) -> Event:
            if state.searches.claims[self.search].claim != self.claim:
                raise Superseded(f"another process took search {self.search} over; this one stops")
            return event

        ledger.transact(unless_claimed)

    def _tried(self, point: P, decided: Branched, step: int, trained: int) -> Tried:
        from perennial.evaluation import Loading, measure

        checkpoint, annealed = self.train(point, decided, step)
        losses = measure(
            open_run_store(self.spec.store),
            checkpoint,
            self.measured,
            self.spec.corpora.sequence_length,
            self.spec.evaluation.documents,
            loading=Loading(self.spec.evaluation.precision, self.spec.evaluation.gpus),
        )
        kept, lost = split_finite(losses)
        if lost:
            # As where its training loss left the numbers: another try would meet the same.
            raise TrainingStopped(
                f"{decided.trial} at step {step}: its held-out loss on {' and '.join(lost)} is not "
                f"a number; {self.remedy}"
            )
        nats = {corpus: loss.nats_per_token for corpus, loss in kept.items()}
        return Tried(
            at=now(),
            trial=decided.trial,
            step=step,
            checkpoint=checkpoint,
            trained_steps=trained + annealed,
            values=self.values_of(nats),
            losses=kept,
        )


def no_progress(progress: object) -> None:
    """Ignore the progress of a single trial."""
