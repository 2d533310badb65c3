"""Start a worker group under Ray Train for a job, pass on its progress, wait for its end."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.train import RunConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from perennial.causes import innermost_of
from perennial.errors import MISTAKES, Terminated, TrainingFailed, TrainingStopped
from perennial.store import open_run_store
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.checkpoint.reader import check_latest
from perennial.training.job import Job
from perennial.training.ray.elastic import ElasticTrainer
from perennial.training.ray.environment import allocator_environment
from perennial.training.ray.internals import TrainingFailedError, failures_of_workers
from perennial.training.ray.preemption import PreemptibleTorchConfig, Termination
from perennial.training.ray.progress_actor import Progress, ProgressActor

_POLL_SECONDS = 0.25

Meanwhile = Callable[[], bool]
"""called while a job trains, by who waits for it; False ends the job: its workers save and end"""


def _go_on() -> bool:
    return True


def run_job(job: Job, on_progress: Callable[[Progress], None]) -> str:
    """Train a job to its end with workers of its own. Returns the key of its last checkpoint.

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
    workers = KeptWorkers()
    try:
        end = workers.run_job(job, on_progress)
        assert end is not None, "nothing ended the job early"
        return end
    finally:
        workers.let_go()


class KeptWorkers:
    """Workers that wait, after a job, for the next one that needs the same workers.

    A job begins in processes that wait exactly as in new ones: from what is in the store.
    """

    def __init__(self, name: str = "") -> None:
        """Begin without workers.

        Args:
            name: under which room for workers is requested; by default the job's folder. After a
                kill the same name gets the room that the killed driver had.
        """
        self._name = name
        self._group: _WorkerGroup | None = None

    def run_job(
        self,
        job: Job,
        on_progress: Callable[[Progress], None],
        keep_seconds: float = 0.0,
        meanwhile: Meanwhile = _go_on,
    ) -> str | None:
        """Train a job, as `run_job` does; then its workers wait for `keep_seconds`.

        It begins in new workers where those that wait are gone, or were started for other settings.
        Returns None where `meanwhile` ended the job before its last step.
        """
        store = open_run_store(job.store_url)
        check_latest(job, store)
        if self._group is None or not self._group.takes(job):
            self.let_go()
            self._group = _WorkerGroup(job, self._name or job.folder, keep_seconds)
        is_whole = self._group.follow(job, on_progress, meanwhile)
        return checkpoint.folder_of(job.folder, job.last_step) if is_whole else None

    @property
    def are_waiting(self) -> bool:
        """Return whether there are workers that wait for a job."""
        return self._group is not None and self._group.waits

    def let_go(self) -> None:
        """End the workers that wait, and return when their room is free."""
        if self._group is not None:
            self._group.let_go()
        self._group = None

    def leave(self) -> None:
        """Let the workers that wait end by themselves."""
        if self._group is not None:
            self._group.leave()
        self._group = None


class _WorkerGroup:
    """The worker groups of one `fit` of Ray Train, which runs in a thread of its own."""

    def __init__(self, job: Job, name: str, keep_seconds: float) -> None:
        """Start workers for a job."""
        self._training = job.training
        self._environment = allocator_environment(job.logits_bytes)
        # Beside the driver: another node may go at any time, and a trial's placement group is full.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        made = ray.remote(ProgressActor).options(num_cpus=0, scheduling_strategy=here)
        self._actor = made.remote(keep_seconds)
        self._is_over = threading.Event()
        self._is_left = False
        self._failure: BaseException | None = None
        # Not waited for: the actor starts, which takes seconds, while the workers do.
        self._actor.offer.remote(job.to_dict())
        self._thread = threading.Thread(
            target=self._run, args=(job, name), name="workers", daemon=True
        )
        self._thread.start()

    def _run(self, job: Job, name: str) -> None:
        try:
            _fit(job, name, self._environment, self._actor)
        except BaseException as failure:  # passed on to the thread that waits for the job
            self._failure = failure
        finally:
            self._is_over.set()

    @property
    def waits(self) -> bool:
        """Return whether the workers wait for a job."""
        return not self._is_over.is_set()

    def takes(self, job: Job) -> bool:
        """Offer a job to workers that wait; return whether they are there and fit it."""
        same = (job.training, allocator_environment(job.logits_bytes))
        if not self.waits or same != (self._training, self._environment):
            return False
        return bool(ray.get(self._actor.offer.remote(job.to_dict())))

    def follow(
        self, job: Job, on_progress: Callable[[Progress], None], meanwhile: Meanwhile
    ) -> bool:
        """Wait for the end of the job that the workers have. Raises as `run_job` documents.

        Returns:
            Whether the job was trained to its last step; False where `meanwhile` ended it.
        """
        watch = _Watch(self._actor, self._is_over, on_progress)
        watch.start()
        try:
            with watch.termination.handled():
                # In pieces: a signal that another thread received would end no wait.
                while not watch.wait(_POLL_SECONDS):
                    watch.is_unwanted |= not meanwhile()
        except BaseException:
            # This process ends, and the workers with it.
            self._is_left = True
            self._is_over.set()
            watch.join()
            ray.kill(self._actor)
            raise
        reached = checkpoint.latest_step(open_run_store(job.store_url), job.folder)
        if watch.is_unwanted and not watch.termination.requested and reached != job.last_step:
            return False  # however its workers ended
        failure = None if watch.is_done else self._failure
        _check_end(job, reached, watch.stopped, watch.termination, failure)
        return True

    def leave(self) -> None:
        """Let the workers, which have no job, end by themselves."""
        if self.waits:
            self._actor.let_go.remote()

    def let_go(self) -> None:
        """End the workers, which have no job; return when they are gone."""
        self.leave()
        if not self._is_left:
            self._thread.join()
            ray.kill(self._actor)


class _Watch(threading.Thread):
    """Passes on the progress of a job until its last step is stored, or the workers are gone.

    is_done: whether the last step is stored.
    stopped: why the workers ended before it; empty when they did not.
    is_unwanted: set by who waits, where the workers are to save and end.
    """

    def __init__(
        self, actor: Any, is_over: threading.Event, on_progress: Callable[[Progress], None]
    ) -> None:
        super().__init__(name="progress", daemon=True)
        self._actor = actor
        self._is_over = is_over
        self._on_progress = on_progress
        self.termination = Termination()
        self.is_done = False
        self.is_unwanted = False
        self.stopped: list[str] = []

    def run(self) -> None:
        is_last = False
        while not (is_last or self.is_done):
            is_last = self._is_over.wait(_POLL_SECONDS)
            if self.termination.requested or self.is_unwanted:
                self._actor.ask_to_stop.remote()
            progress, is_at_work = ray.get(self._actor.drain.remote())
            self.stopped.extend(progress.stopped)
            # A finished step is a state worth saving: SIGTERM need no longer end the process at
            # once.
            self.termination.graceful |= bool(progress.rows)
            self._on_progress(progress)
            self.is_done = not is_at_work

    def wait(self, seconds: float) -> bool:
        """Wait for the end, at most for `seconds`; return whether it is there."""
        self.join(seconds)
        return not self.is_alive() and (self.is_done or self._is_over.wait(seconds))


def _check_end(
    job: Job,
    reached: int | None,
    stopped: Sequence[str],
    termination: Termination,
    failure: BaseException | None,
) -> None:
    """Raise what `run_job` documents unless the job reached its last step."""
    is_failed = isinstance(failure, TrainingFailedError)
    if failure is not None and not is_failed:
        raise failure
    # Workers that fail while they save and end do not undo the request to end: a retry would go on
    # training in a process that must exit.
    if termination.requested:
        raise Terminated(
            f"{job.name}: stopped on request with the checkpoint of step {reached or 0:,} stored; "
            "the same command continues from there"
        )
    if failure is not None:
        first, line = _first_failure(failure)
        failure.__cause__ = first if isinstance(first, MISTAKES) else None
        raise TrainingFailed(f"{job.name}: {line}") from failure
    if stopped:
        raise TrainingStopped(f"{job.name}: {stopped[-1]}")
    if reached != job.last_step:
        raise TrainingFailed(f"{job.name}: the workers ended before step {job.last_step}")


def _fit(job: Job, name: str, environment: dict[str, str], actor: Any) -> None:
    """Run worker groups, the first for `job`, until they are let go or give up."""
    with tempfile.TemporaryDirectory(prefix="perennial-ray-") as scratch:
        trainer = ElasticTrainer(
            job,
            name,
            actor,
            _train,
            train_loop_config={"driver": actor},
            run_config=RunConfig(
                name=job.name,
                storage_path=scratch,
                worker_runtime_env={"env_vars": environment},
            ),
            torch_config=PreemptibleTorchConfig(
                timeout_s=max(1, round(60 * job.training.hang_minutes))
            ),
        )
        trainer.fit()


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
