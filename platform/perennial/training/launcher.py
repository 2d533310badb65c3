"""Start a worker group under Ray Train for a job, pass on its progress, wait for its end."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.train import RunConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from perennial.causes import innermost_of
from perennial.errors import MISTAKES, Terminated, TrainingFailed, TrainingStopped
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.checkpoint.reader import check_latest
from perennial.training.job import Job
from perennial.training.ray.elastic import ElasticTrainer
from perennial.training.ray.environment import allocator_environment
from perennial.training.ray.internals import TrainingFailedError, failures_of_workers
from perennial.training.ray.preemption import PreemptibleTorchConfig, Termination

_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Progress:
    """Reports of the worker group since the last poll.

    started: (trunk step, world size) of every start of a worker group.
    rows: one per finished optimizer step: the metrics (`training.metrics`), step, phase,
        batch_tokens, seconds (by part of the step, see `step_timer`), and spike (what is wrong)
        where the job ignores one.
    saved: keys of committed checkpoints.
    failed_saves: steps whose checkpoint could not be stored, one entry per failure.
    notices: sentences about what went wrong without ending the training.
    skipped: what is wrong with every batch that is left out from now on.
    stopped: why the workers ended before the last step; empty when they did not.
    """

    started: list[tuple[int, int]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    failed_saves: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)


class _ProgressActor:
    """An actor between the workers, which report to it, and the driver, which polls it.

    No call waits for the other side, so a slow driver does not slow a step down.
    """

    def __init__(self) -> None:
        self._progress = Progress()
        self._stop = False
        self._is_stopped = False
        self._started_at = 0.0

    def started(self, step: int, world_size: int) -> None:
        self._started_at = time.time()
        self._progress.started.append((step, world_size))

    def last_start(self) -> float:
        """Return when a group last began to train, in seconds since 1970."""
        return self._started_at

    def push(self, rows: list[dict[str, Any]]) -> bool:
        """Add rows. Returns whether the driver has asked the workers to save and end."""
        self._progress.rows.extend(rows)
        return self._stop

    def saved(self, key: str) -> None:
        self._progress.saved.append(key)

    def skipped(self, why: str) -> None:
        self._progress.skipped.append(why)

    def failed_save(self, step: int, line: str) -> None:
        self._progress.failed_saves.append(step)
        self._progress.notices.append(line)

    def notice(self, line: str) -> None:
        self._progress.notices.append(line)

    def ask_to_stop(self) -> None:
        self._stop = True

    def stopped(self, why: str) -> None:
        self._is_stopped = True
        self._progress.stopped.append(why)

    def is_stopped(self) -> bool:
        """Return whether a worker said that another worker group would fare no better."""
        return self._is_stopped

    def drain(self) -> Progress:
        """Return what was reported since the last call."""
        progress, self._progress = self._progress, Progress()
        return progress


def run_job(job: Job, on_progress: Callable[[Progress], None]) -> str:
    """Train a job to its end. Returns the key of its last checkpoint.

    Ray must be initialised. Safe to call again after a kill: the job goes on from its latest
    checkpoint.

    Args:
        job: what to train.
        on_progress: called from another thread, a few times a second.

    Raises:
        Terminated: this process received SIGTERM; the workers saved and ended, or failed to.
        InputError: the job would load the state of another optimizer (`optimizer-changed`).
        TrainingFailed: more than `training.max_failures` worker groups in a row died without a new
            checkpoint.
        TrainingStopped: another worker group would not help: a loss stopped the job
            (`training.spikes`), too many checkpoints could not be stored
            (`training.max_failed_checkpoints`), what the job starts from or a shard is damaged, or
            the model does not support what the run file asks of it.
    """
    store = open_store(job.store_url)
    check_latest(job, store)
    # Beside the driver: another node may go at any time, and a trial's placement group is full.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(_ProgressActor).options(num_cpus=0, scheduling_strategy=here).remote()
    finished = threading.Event()
    stopped: list[str] = []
    termination = Termination()

    watcher = threading.Thread(
        target=_watch,
        args=(actor, finished, termination, stopped, on_progress),
        name="progress",
        daemon=True,
    )
    watcher.start()
    try:
        with termination.handled():
            _fit(job, actor)
    except TrainingFailed:
        # Workers that fail while they save and end do not undo the request to end: a retry would
        # go on training in a process that must exit.
        if not termination.requested:
            raise
    finally:
        finished.set()
        watcher.join()
        ray.kill(actor)
    _check_end(job, checkpoint.latest_step(store, job.folder), stopped, termination)
    return checkpoint.folder_of(job.folder, job.last_step)


def _check_end(
    job: Job, reached: int | None, stopped: Sequence[str], termination: Termination
) -> None:
    """Raise what `run_job` documents unless the job reached its last step."""
    if termination.requested:
        raise Terminated(
            f"{job.name}: stopped on request with the checkpoint of step {reached or 0:,} stored; "
            "the same command continues from there"
        )
    if stopped:
        raise TrainingStopped(f"{job.name}: {stopped[-1]}")
    if reached != job.last_step:
        raise TrainingFailed(f"{job.name}: the workers ended before step {job.last_step}")


def _watch(
    actor: Any,
    finished: threading.Event,
    termination: Termination,
    stopped: list[str],
    on_progress: Callable[[Progress], None],
) -> None:
    """Poll the progress actor until `finished`, and once more after it."""
    while True:
        last = finished.wait(_POLL_SECONDS)
        if termination.requested:
            actor.ask_to_stop.remote()
        progress = ray.get(actor.drain.remote())
        stopped.extend(progress.stopped)
        # A finished step is a state worth saving: SIGTERM need no longer end the process at once.
        termination.graceful |= bool(progress.rows)
        on_progress(progress)
        if last:
            return


def _fit(job: Job, actor: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="perennial-ray-") as scratch:
        trainer = ElasticTrainer(
            job,
            actor,
            _train,
            train_loop_config={"job": job.to_dict(), "driver": actor},
            run_config=RunConfig(
                name=job.name,
                storage_path=scratch,
                worker_runtime_env={"env_vars": allocator_environment(job.logits_bytes)},
            ),
            torch_config=PreemptibleTorchConfig(
                timeout_s=max(1, round(60 * job.training.hang_minutes))
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as failed:
            first, line = _first_failure(failed)
            failed.__cause__ = first if isinstance(first, MISTAKES) else None
            raise TrainingFailed(f"{job.name}: {line}") from failed


def _train(config: dict[str, Any]) -> None:
    # Imported where it runs: the driver needs no DeepSpeed.
    from perennial.training.worker import train

    train(config)


def _first_failure(failed: BaseException) -> tuple[BaseException, str]:
    """Return what ended a worker group, and its innermost cause in one line.

    A mistake of one worker is what counts: the others only lost the connection to that one.
    """

    def rank(failure: tuple[BaseException, str]) -> int:
        if isinstance(failure[0], MISTAKES):
            return 0
        # Lost connections are errors of these classes.
        return 2 if isinstance(failure[0], RuntimeError | ConnectionError) else 1

    raised = failures_of_workers(failed)
    first, printed = min(raised, key=rank, default=(failed, str(failed)))
    return first, innermost_of(printed)
