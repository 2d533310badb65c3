"""What a person is told when the loss misbehaves. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.mixture.origins import origins
from perennial.training.checkpoint import folder_of
from perennial.training.spikes import Problem

if TYPE_CHECKING:
    from perennial.training.job import Job

_MOST_PLACES = 12


class Spike(Exception):
    """The optimizer step that leaves trunk step `step` must not be kept; all ranks raise it."""

    def __init__(self, step: int, problem: Problem) -> None:
        super().__init__(problem.text)
        self.step = step
        self.problem = problem


def described(job: Job, step: int, problem: Problem) -> str:
    """Where it happened, what is wrong, and the rows that were in the batch."""
    places = [str(origin) for origin in origins(job.mix, job.layouts, step - job.first_step)]
    if len(places) > _MOST_PLACES:
        places[_MOST_PLACES:] = [f"{len(places) - _MOST_PLACES} places more"]
    return f"step {step + 1} ({job.phase(step)}): {problem.text}; its batch was {', '.join(places)}"


def advice(job: Job, spike: Spike, committed: int | None) -> str:
    """All of it for the person who must act; `committed` is the job's last checkpoint."""
    stands = job.start if committed is None else folder_of(job.folder, committed)
    choices = "lower schedule.eta_max or training.gradient_clip"
    if spike.problem.finite:
        choices += (
            ", raise training.spikes.threshold if this loss is no fault, or set "
            "training.spikes.policy to ignore"
        )
    return (
        f"{described(job, spike.step, spike.problem)}. The trunk is unharmed at "
        f"{stands or 'its random weights'}; {choices}, then run again"
    )
