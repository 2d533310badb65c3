"""Who tells a person what is happening; the command line draws it, tests listen to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from perennial.training.job import Job
    from perennial.training.trainer import Progress


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
