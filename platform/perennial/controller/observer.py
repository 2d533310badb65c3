"""Who watches a run: narrators draw progress, observers publish what the controller recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.runs.events import Released, Releasing
    from perennial.runs.state import Stage
    from perennial.training.job import Job
    from perennial.training.launcher import Progress


class Narrator(Protocol):
    """Listens to the shell; nothing that it does changes the run."""

    def say(self, text: str) -> None:
        """One line about what begins or ended."""

    def begin(self, job: Job) -> None:
        """A job's worker group is about to start."""

    def news(self, job: Job, progress: Progress) -> None:
        """What the worker group did since the last call; called from another thread."""

    def end(self, job: Job) -> None:
        """The job reached its last step."""


class RunObserver:
    """Base of what follows a run: each hook runs after its event is in the ledger.

    A hook that raises becomes a notice; it never fails what the controller does.
    """

    def stage_evaluated(self, work: Workspace, stage: Stage) -> None:
        """Called after a stage's end was measured."""

    def matrix_filled(self, work: Workspace) -> None:
        """Called after missing cells of the loss matrix were measured."""

    def release_made(self, work: Workspace, claimed: Releasing, released: Released) -> None:
        """Called after a release was exported and measured."""

    def release_scored(self, work: Workspace, released: Released) -> None:
        """Called after a release was scored on lm-eval tasks."""
