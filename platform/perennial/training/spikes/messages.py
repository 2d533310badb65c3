"""What a person is told when the loss misbehaves. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.errors import Spike
from perennial.mixture.provenance import Origin, trace_origins
from perennial.training.checkpoint.manifest import folder_of
from perennial.training.spikes.skips import Skip

if TYPE_CHECKING:
    from perennial.training.job import Job

_MOST_PLACES = 12


def skip_of(job: Job, spike: Spike) -> Skip:
    """The record that leaves the spike's batch out."""
    found = tuple(origin.to_dict() for origin in _origins(job, spike))
    return Skip(step=spike.step, reason=spike.text, origins=found)


def described(job: Job, spike: Spike) -> str:
    """Where it happened, what is wrong, and the rows that were in the batch."""
    places = [str(origin) for origin in _origins(job, spike)]
    if len(places) > _MOST_PLACES:
        places[_MOST_PLACES:] = [f"{len(places) - _MOST_PLACES} places more"]
    return (
        f"step {spike.step} ({job.phase(spike.step - 1)}): {spike.text}; its batch was "
        f"{', '.join(places)}"
    )


def advice(job: Job, spike: Spike, committed: int | None) -> str:
    """All of it for the person who must act; `committed` is the job's last checkpoint."""
    stands = job.start if committed is None else folder_of(job.folder, committed)
    spikes = job.training.spikes
    if spikes.policy == "rollback-and-skip":
        ways = [f"{spikes.max_skips} batches were left out already (training.spikes.max_skips)"]
    else:
        ways = ["set training.spikes.policy to rollback-and-skip to leave this batch out"]
    ways.append("lower schedule.eta_max or training.gradient_clip")
    if spike.finite:
        ways.append("raise training.spikes.threshold, or ignore it, if this loss is no fault")
    return (
        f"{described(job, spike)}. The trunk is unharmed at {stands or 'its random weights'}. "
        f"Look at these rows; {'; '.join(ways)}; then run again"
    )


def _origins(job: Job, spike: Spike) -> list[Origin]:
    return trace_origins(job.mix, job.layouts, spike.step - 1 - job.first_step)
