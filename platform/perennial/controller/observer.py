"""Observers of a run: progress lines, MLflow, gauges and pictures follow the controller here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.runs.events import Failed, Released, Releasing, Tried
    from perennial.runs.state import RunState, Stage
    from perennial.store import Store
    from perennial.training.job import Job
    from perennial.training.ray.progress_actor import Progress


class ObservedRun(Protocol):
    """The part of a run that an observer may read."""

    spec: RunSpec
    store: Store
    inbox: Store
    run_ids: RunIds
    setbacks: dict[str, Failed]

    @property
    def state(self) -> RunState:
        """The run as of the last read of its ledger."""

    @property
    def store_id(self) -> str:
        """The id that names the store wherever it lies; "" before the run was opened."""

    @property
    def in_charge(self) -> bool:
        """Return whether this process is the controller in charge."""

    def log(self, text: str) -> None:
        """Show a line to the user."""


class RunObserver:
    """Base of everything that follows a run; a subclass overrides the hooks that it needs.

    A hook about something that was recorded runs after its event is in the ledger. A hook that
    raises becomes a notice; it never fails what the controller does.
    """

    def check(self, work: ObservedRun) -> None:
        """Raise InputError for wrong settings, before anything is written or computed."""

    def message(self, text: str) -> None:
        """Show one line about what begins or ended."""

    def looked(self, work: ObservedRun) -> None:
        """Follow a look of the controller at the ledger and the inbox."""

    def found_done(self, work: ObservedRun) -> None:
        """Follow a command that may find done what it makes, by a process that was killed since."""

    def source_tried(self, work: ObservedRun, source: str, failures: int) -> None:
        """Follow a look at a source; called from its thread.

        Args:
            work: the run.
            source: its name in the run file.
            failures: attempts that failed since the last success.
        """

    def look_failed(self, work: ObservedRun, failure: Exception) -> None:
        """Follow a look of `watch` that could do nothing; the ledger does not have its failure."""

    def source_in_trouble(self, work: ObservedRun, source: str, problem: str, episode: str) -> None:
        """Follow a source that fails again and again; called from another thread.

        Args:
            work: the run.
            source: its name.
            problem: what is wrong, in one line.
            episode: names this trouble; the same as long as nothing of it was mended.
        """

    def ingest_began(self, work: ObservedRun, corpus: str) -> None:
        """Follow the beginning of a corpus's tokenisation."""

    def job_began(self, work: ObservedRun, job: Job) -> None:
        """Follow the start of a job's worker group."""

    def job_progressed(self, work: ObservedRun, job: Job, progress: Progress) -> None:
        """Follow what the workers did since the last call; called from another thread."""

    def job_ended(self, work: ObservedRun, job: Job) -> None:
        """Follow a job's last step."""

    def stage_started(self, work: ObservedRun, stage: Stage) -> None:
        """Follow the decision to train a stage; it has no step yet."""

    def stage_trained(self, work: ObservedRun, stage: Stage) -> None:
        """Follow the end of a stage's training."""

    def stage_evaluated(self, work: ObservedRun, stage: Stage) -> None:
        """Follow the measurement of a stage's end."""

    def stage_gated(self, work: ObservedRun, stage: Stage) -> None:
        """Follow a stage that its gates stopped."""

    def trial_measured(self, work: ObservedRun, tried: Tried) -> None:
        """Follow the measurement of a trial that a broken gate led to."""

    def matrix_filled(self, work: ObservedRun) -> None:
        """Follow the measurement of missing cells of the loss matrix."""

    def release_made(self, work: ObservedRun, claimed: Releasing, released: Released) -> None:
        """Follow the export and the measurement of a release."""

    def release_scored(self, work: ObservedRun, released: Released) -> None:
        """Follow the scoring of a release on lm-eval tasks."""

    def promoted(self, work: ObservedRun, released: Released, alias: str) -> None:
        """Follow the move of an alias to a release."""

    def report_written(self, work: ObservedRun, html: bytes) -> None:
        """Follow the writing of the report's page."""

    def closed(self) -> None:
        """Deliver what is left; nothing follows."""


class RunIds:
    """Gives the ids under which a tracker keeps stages and releases; the ledger records them.

    This one tracks nothing: every id is empty.
    """

    def stage_run_id(self, work: ObservedRun, stage: Stage) -> str:
        """Return the id of a stage that is about to start, or "" where none is known in time."""
        return ""

    def release_run_id(self, work: ObservedRun, release: str) -> str:
        """Return the id of a release that is about to be annealed, or ""."""
        return ""
