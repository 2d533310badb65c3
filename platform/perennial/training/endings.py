"""How a job may end before its last step."""

from __future__ import annotations


class TrainingFailed(Exception):
    """The worker group gave up; the trunk stands at its last committed checkpoint.

    Its cause is what a worker raised, where that was a mistake.
    """


class TrainingStopped(TrainingFailed):
    """A loss stopped the job; another try would only meet the same batch again."""


class TrainingTerminated(Exception):
    """The driver was told to end; the workers stored a checkpoint of their last step."""
