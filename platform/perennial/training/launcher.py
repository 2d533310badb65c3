"""The shell around Ray Train: start a worker group for a job, watch it, wait for it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.train import RunConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from perennial.errors import MISTAKES, Terminated, TrainingFailed, TrainingStopped
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.checkpoint.reader import check_optimizer_of
from perennial.training.job import Job
from perennial.training.ray.elastic import ElasticTrainer
from perennial.training.ray.environment import allocator_environment
from perennial.training.ray.internals import TrainingFailedError, exceptions_of_workers
from perennial.training.ray.preemption import PreemptibleTorchConfig, Termination


@dataclass(frozen=True)
class Progress:
    """News from the worker group since the last look.

    started: (trunk step, world size) of each worker-group start.
    rows: one row a finished optimizer step: step, loss (nats per token), eta, phase,
        batch_tokens, tokens_per_second, gradient_norm (before clipping), seconds (by part of the
        step, see `meter`), and spike (what was wrong) where the job ignores one.
    saved: keys of committed checkpoints.
    failed_saves: steps whose checkpoint could not be stored, one entry a failure.
    notices: lines for a person about what did not go as planned, and training went on.
    skipped: what was wrong with each batch that is left out from now on, in words.
    stopped: why the workers ended before the last step, in words; empty when they did not.
    """

    started: list[tuple[int, int]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    failed_saves: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)


class _Tap:
    """An actor that the workers tell their news, and the driver asks for it; nobody waits."""

    def __init__(self) -> None:
        self._news = Progress()
        self._stop = False

    def started(self, step: int, world_size: int) -> None:
        self._news.started.append((step, world_size))

    def push(self, rows: list[dict[str, Any]]) -> bool:
        """Take rows; whether the workers shall save and end."""
        self._news.rows.extend(rows)
        return self._stop

    def saved(self, key: str) -> None:
        self._news.saved.append(key)

    def skipped(self, why: str) -> None:
        self._news.skipped.append(why)

    def failed_save(self, step: int, line: str) -> None:
        self._news.failed_saves.append(step)
        self._news.notices.append(line)

    def notice(self, line: str) -> None:
        self._news.notices.append(line)

    def ask_to_stop(self) -> None:
        self._stop = True

    def stopped(self, why: str) -> None:
        self._news.stopped.append(why)

    def drain(self) -> Progress:
        news, self._news = self._news, Progress()
        return news


def run_job(job: Job, on_progress: Callable[[Progress], None]) -> str:
    """Train the job to its end; the key of its last checkpoint. Safe to call again after a kill.

    Ray must be initialised. `on_progress` is called from another thread, a few times a second.
    SIGTERM to this process makes the workers save and end, and this raise Terminated.
    Raises TrainingFailed when more than `training.max_failures` worker groups in a row died
    without a new checkpoint, and TrainingStopped when the workers ended for good: a loss
    stopped the job (`training.spikes`), too many checkpoints could not be stored
    (`training.max_failed_checkpoints`), what the job starts from is damaged, or the model cannot
    do what the run file asks of it.
    """
    store = open_store(job.store_url)
    check_optimizer_of(job, store)
    # Beside the driver: another node may go at any time, and a trial's placement group is full.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    tap = ray.remote(_Tap).options(num_cpus=0, scheduling_strategy=here).remote()
    stop = threading.Event()
    stopped: list[str] = []
    termination = Termination()

    def watch() -> None:
        while True:
            last = stop.wait(0.25)
            if termination.requested:
                tap.ask_to_stop.remote()
            progress = ray.get(tap.drain.remote())
            stopped.extend(progress.stopped)
            termination.graceful |= bool(progress.rows)
            on_progress(progress)
            if last:
                return

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        with termination.handled():
            _fit(job, tap)
    finally:
        stop.set()
        watcher.join()
        ray.kill(tap)
    if stopped:
        raise TrainingStopped(f"{job.name}: {stopped[-1]}")
    reached = checkpoint.latest_step(store, job.folder)
    if termination.requested:
        raise Terminated(
            f"{job.name}: stopped on request with the checkpoint of step {reached or 0:,} stored; "
            "the same command goes on from there"
        )
    if reached != job.last_step:
        raise TrainingFailed(f"{job.name}: the workers ended before step {job.last_step}")
    return checkpoint.folder_of(job.folder, job.last_step)


def _fit(job: Job, tap: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="perennial-ray-") as scratch:
        trainer = ElasticTrainer(
            job,
            _train,
            train_loop_config={"job": job.to_dict(), "tap": tap},
            run_config=RunConfig(
                name=job.name,
                storage_path=scratch,
                worker_runtime_env={"env_vars": allocator_environment()},
            ),
            torch_config=PreemptibleTorchConfig(),
        )
        try:
            trainer.fit()
        except TrainingFailedError as failed:
            raise TrainingFailed(f"{job.name}: {_cause(failed)}") from _mistake(failed)


def _train(config: dict[str, Any]) -> None:
    # Imported where it runs: the driver needs no DeepSpeed.
    from perennial.training.worker import train

    train(config)


def _mistake(failed: BaseException) -> BaseException | None:
    """The mistake that a worker raised, if one did; the others only lost touch with that worker."""
    raised = exceptions_of_workers(failed)
    return next((error for error in raised if isinstance(error, MISTAKES)), None)


def _cause(failed: BaseException) -> str:
    lines = [line for line in str(failed).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(failed).__name__
