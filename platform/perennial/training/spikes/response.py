"""Response to a loss spike: ignore it, leave its batch out, or stop with advice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray

from perennial.errors import Spike
from perennial.training.checkpoint.manifest import folder_of, latest_step
from perennial.training.spikes.batch import TracedBatch, trace_batch
from perennial.training.spikes.detector import SpikeWatch
from perennial.training.spikes.skips import Skip, record_skip

if TYPE_CHECKING:
    from perennial.store import Store
    from perennial.training.checkpoint.resume import ResumeState
    from perennial.training.job import Job


class SpikeResponse:
    """Judges every step's loss on all ranks alike, and responds as `training.spikes` says."""

    def __init__(self, job: Job, store: Store, driver: Any, state: ResumeState) -> None:
        """Prepare for the steps after a checkpoint.

        Args:
            job: the job.
            store: the run's store.
            driver: handle of the driver's progress actor.
            state: of the job at the checkpoint; the losses before it are judged by.
        """
        self._job = job
        self._store = store
        self._driver = driver
        self._skipped = len(state.skipped)
        self._ignored = state.spikes
        self._watch = SpikeWatch(job.training.spikes, state.losses)

    def judge(self, row: dict[str, Any]) -> None:
        """Judge a step's row by its loss and gradient norm, and note an ignored spike in it.

        Raises:
            Spike: the step must not be kept. Every rank raises it, as all have the same numbers.
        """
        problem = self._watch.judge(row["loss"], row["gradient_norm"])
        if problem is not None:
            if not problem.finite or self._job.training.spikes.policy != "ignore":
                raise Spike(row["step"], problem.text, problem.finite)
            self._ignored += 1
            row["spike"] = problem.text
        if self._ignored:
            row["spikes"] = self._ignored

    @property
    def can_skip(self) -> bool:
        """Return whether the batch of one more spike may be left out."""
        policy = self._job.training.spikes
        return policy.policy == "rollback-and-skip" and self._skipped < policy.max_skips

    def record(self, spike: Spike) -> None:
        """Record the skip of a spike's batch, or report why training stops; call it on one rank."""
        job, batch = self._job, trace_batch(self._store, self._job, spike.step)
        committed = latest_step(self._store, job.folder)
        if self.can_skip:
            record_skip(self._store, job.folder, _skip_of(spike, batch))
            stands = job.first_step if committed is None else committed
            self._driver.skipped.remote(
                f"{_describe(job, spike, batch)}; going on from step {stands} without this batch"
            )
        else:
            # Reported instead of raised: another worker group would only meet the same batch again.
            ray.get(self._driver.stopped.remote(_advice(job, spike, batch, committed)))


def _skip_of(spike: Spike, batch: TracedBatch) -> Skip:
    places = tuple(origin.to_dict() for origin in batch.origins)
    documents = batch.list_documents()
    return Skip(step=spike.step, reason=spike.text, origins=places, documents=documents)


def _describe(job: Job, spike: Spike, batch: TracedBatch) -> str:
    """Return where it happened, what is wrong, and what was in the batch."""
    phase = job.phase(spike.step - 1)
    return f"step {spike.step} ({phase}): {spike.text}; its batch was {batch.describe()}"


def _advice(job: Job, spike: Spike, batch: TracedBatch, committed: int | None) -> str:
    """Return the message for the user who must act; `committed` is the job's last checkpoint."""
    start = job.start or job.model.describe_start()
    stands = start if committed is None else folder_of(job.folder, committed)
    spikes = job.training.spikes
    if spikes.policy == "rollback-and-skip":
        ways = [f"{spikes.max_skips} batches were left out already (training.spikes.max_skips)"]
    else:
        ways = ["set training.spikes.policy to rollback-and-skip to leave this batch out"]
    ways.append("lower schedule.eta_max or training.gradient_clip")
    if spike.finite:
        ways.append("raise training.spikes.threshold, or ignore it, if this loss is no fault")
    return (
        f"{_describe(job, spike, batch)}. The trunk is unharmed at {stands}. "
        f"Look at these rows; {'; '.join(ways)}; then run again"
    )
