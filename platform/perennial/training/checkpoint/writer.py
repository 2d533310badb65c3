"""Writing of checkpoints while training goes on.

A thread of each worker writes its share of the model and the optimizer's state that it holds to
local files (the snapshot, one at a time), and copies them to the store; rank 0's commits when all
have reported theirs. Nothing changes weights or moments before the next optimizer step, so training
goes on at once, and only that step waits for the snapshot.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tenacity
import torch
import torch.distributed as dist

from perennial.causes import remedy_of
from perennial.errors import StoreFailed
from perennial.schedules import to_dict
from perennial.store import Store
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.checkpoint.manifest import METRICS, OPTIMIZER
from perennial.training.checkpoint.retention import sweep
from perennial.training.checkpoint.staging import QueuedWork
from perennial.training.checkpoint.tensors import (
    ModelShard,
    divide_model,
    write_model_folder,
    write_tensors,
)
from perennial.training.engine.deepspeed_internals import loss_scale
from perennial.training.engine.engine import gather_weights
from perennial.training.engine.optimizer_state import optimizer_state
from perennial.training.job import Job
from perennial.training.stack import worker_stack
from perennial.version import __version__

_MODEL = "model"
_PREFIX = "perennial-checkpoint-"
_TAKEN_OVER = "another controller took this job over, and its workers write the checkpoints"
_UPLOADS_TRIED = 3
_PATIENCE_SECONDS = 5.0
"""Wait after a needed checkpoint failed; doubles with every further failure."""


@dataclass(frozen=True)
class _Snapshot:
    """A step's state in this worker's local files; `needed` ones are tried until they are there."""

    step: int
    optimizer_steps: int
    loss_scale: float | None
    needed: bool


class Saver:
    """Takes and stores the checkpoints of a job on one rank; every rank makes the same calls."""

    def __init__(
        self,
        job: Job,
        store: Store,
        driver: Any,
        history: Path | None,
        skipped: tuple[int, ...] = (),
    ) -> None:
        """Prepare to save.

        Args:
            job: the job.
            store: the run's store.
            driver: handle of the driver's progress actor.
            history: local file with the metrics of the checkpoint that training goes on from.
            skipped: trunk steps whose batch is left out.
        """
        self._job = job
        self._store = store
        self._driver = driver
        self._skipped = skipped
        self._rank = dist.get_rank()
        self._world = dist.get_world_size()
        # Collectives of the background threads, apart from those of training.
        self._group = dist.new_group(backend="gloo")
        attempt = [uuid.uuid4().hex[:12]]
        dist.broadcast_object_list(attempt, src=0, group=self._group)
        self._attempt: str = attempt[0]
        _remove_left_over()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{_this_boot()}-{os.getpid()}-"))
        if history is not None and self._rank == 0:
            shutil.copyfile(history, self._folder / METRICS)
        self._shards: list[ModelShard] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None
        self._under_way: Future[None] | None = None
        self._owed = False
        self._put_off = False
        self._failures = 0
        self.hopeless = ""

    @property
    def busy(self) -> bool:
        """Return whether this rank's last snapshot is not in the store yet."""
        return self._under_way is not None and not self._under_way.done()

    def wants(self, step: int) -> bool:
        """Return whether a checkpoint is due at trunk step `step`, or was put off before it."""
        self._owed |= (step - self._job.first_step) % self._job.checkpoint_interval_steps == 0
        return self._owed or self.needs(step)

    def needs(self, step: int) -> bool:
        """Return whether trunk step `step` is the end of a phase or of the job."""
        return step in self._job.phase_ends or step == self._job.last_step

    def save(
        self, engine: Any, step: int, rows: list[dict[str, Any]], *, needed: bool = False
    ) -> None:
        """Begin the snapshot of trunk step `step`; `wait_for_snapshot` before the engine steps on.

        Waits until the one before is stored; raises StoreFailed when that was one failure too many.
        rows: the steps since the last call.
        needed: try until it is stored; the ends of phases and of the job always are.
        """
        self.finish()
        self._owed = False
        moments, steps = optimizer_state(engine, self._job.training.optimizer_config)
        self._shards = self._shards or divide_model(engine.module, self._world)
        mine = {n for shard in self._shards if shard.writer == self._rank for n in shard.weights}
        weights = gather_weights(engine, mine)
        snapshot = _Snapshot(step, steps, loss_scale(engine), needed or self.needs(step))
        self._written = self._thread.submit(
            self._write, engine.module, moments, weights, rows, QueuedWork()
        )
        self._under_way = self._thread.submit(self._store_snapshot, self._written, snapshot)

    def wait_for_snapshot(self) -> None:
        """Wait until weights and moments may change. Raises OSError when writing them failed."""
        if self._written is not None:
            self._written.result()

    def put_off(self, step: int) -> None:
        """Report, once, that a due checkpoint waits for the one before."""
        if self._rank == 0 and not self._put_off:
            self._driver.notice.remote(
                f"the checkpoint due at step {step:,} waits until the one before is stored; "
                "lengthen training.checkpoint_every if this happens often"
            )
        self._put_off = True

    def wait(self) -> None:
        """Wait until nothing is under way."""
        if self._under_way is not None:
            self._under_way.result()

    def finish(self) -> None:
        """Wait, and raise StoreFailed on every rank when too many could not be stored."""
        self.wait()
        if self.hopeless:
            raise StoreFailed(self.hopeless)

    def leave_group(self) -> None:
        """End the collectives of this object; on every rank, when nothing is under way."""
        self.wait()
        dist.destroy_process_group(self._group)

    def close(self) -> None:
        """Drop the local files; what is still under way fails."""
        self._thread.shutdown(wait=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _optimizer_name(self) -> str:
        return f"{OPTIMIZER}{self._rank:02d}-of-{self._world:02d}.safetensors"

    def _write(
        self,
        module: Any,
        moments: dict[str, torch.Tensor],
        weights: dict[str, torch.Tensor],
        rows: list[dict[str, Any]],
        ready: QueuedWork,
    ) -> None:
        """Write the snapshot, on this rank's own thread."""
        write_tensors(moments, self._folder / self._optimizer_name, ready)
        model = self._folder / _MODEL
        write_model_folder(module, weights, model, self._shards, self._rank, ready)
        if self._rank == 0:
            with (self._folder / METRICS).open("a") as sink:
                sink.writelines(f"{json.dumps(row)}\n" for row in rows)

    def _store_snapshot(self, written: Future[None], snapshot: _Snapshot) -> None:
        """Store the snapshot, on the same thread. Raises what writing it raised."""
        written.result()
        limit = self._job.training.max_failed_checkpoints
        while not self.hopeless:
            problem = self._try_to_store(snapshot)
            if not problem:
                self._failures = 0
                return
            if problem == _TAKEN_OVER:
                self.hopeless = problem
                return
            self._failures += 1
            if self._rank == 0:
                self._driver.failed_save.remote(
                    snapshot.step,
                    f"the checkpoint of step {snapshot.step:,} could not be stored ({problem})",
                )
            if self._failures >= limit:
                self.hopeless = (
                    f"{self._failures} checkpoints in a row could not be stored, "
                    f"the last at step {snapshot.step:,}: {problem}"
                )
            elif not snapshot.needed:
                return
            else:
                time.sleep(_PATIENCE_SECONDS * 2 ** (self._failures - 1))

    def _try_to_store(self, snapshot: _Snapshot) -> str:
        """Upload on every rank, then commit on rank 0. Returns what went wrong on any, or ""."""
        parts: list[Any] = [None] * self._world
        dist.all_gather_object(parts, self._upload(snapshot), group=self._group)
        problems = [part for part in parts if isinstance(part, str)]
        outcome = [problems[0] if problems else ""]
        if self._rank == 0 and not problems:
            outcome = [self._commit(snapshot, parts)]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        return outcome[0]

    def _upload(self, snapshot: _Snapshot) -> dict[str, checkpoints.FileEntry] | str:
        key = checkpoints.folder_of(self._job.folder, snapshot.step)
        place = checkpoints.place_of(key, self._attempt)
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_UPLOADS_TRIED),
            wait=tenacity.wait_exponential(0.5),
            retry=tenacity.retry_if_exception_type(OSError),
            reraise=True,
        )
        try:
            return retrying(checkpoints.upload, self._store, place, self._files())
        except Exception as failed:
            # Whatever failed: every rank must learn of it in the collective that follows, or the
            # others would wait there without end. It is counted, and ends training at the limit.
            return _in_one_line(failed)

    def _files(self) -> list[Path]:
        """Return this rank's files as they go to the store."""
        files = [self._folder / self._optimizer_name, *sorted((self._folder / _MODEL).iterdir())]
        return [*files, self._folder / METRICS] if self._rank == 0 else files

    def _commit(self, snapshot: _Snapshot, parts: list[dict[str, checkpoints.FileEntry]]) -> str:
        """Commit and remove older checkpoints. Returns what went wrong, or ""."""
        job = self._job
        key = checkpoints.folder_of(job.folder, snapshot.step)
        files = {name: entry for part in parts for name, entry in part.items()}
        try:
            if not job.may_commit(self._store):
                return _TAKEN_OVER
            checkpoints.commit(self._store, key, self._manifest(snapshot, files))
        except Exception as failed:
            # As above: the other ranks wait for the outcome.
            return _in_one_line(failed)
        self._driver.saved.remote(key)
        try:
            sweep(self._store, job.folder, job.phase_ends, job.last_step, job.training.keep_last)
        except Exception as failed:
            # The checkpoint is committed. What stays behind takes room and does no harm.
            self._driver.notice.remote(
                f"older checkpoints could not be removed ({_in_one_line(failed)}); "
                "the next one tries again"
            )
        return ""

    def _manifest(
        self, snapshot: _Snapshot, files: dict[str, checkpoints.FileEntry]
    ) -> checkpoints.CheckpointManifest:
        job, step = self._job, snapshot.step
        return checkpoints.CheckpointManifest(
            name=job.name,
            step=step,
            phase=job.phase(step - 1),
            eta=job.eta(step - 1),
            schedule=to_dict(job.schedule),
            mix=job.mix.to_dict(),
            mix_step=step - job.first_step,
            tokens_seen=job.tokens_at(step, self._skipped),
            tokens_elsewhere=job.tokens_elsewhere,
            skipped=tuple(skipped for skipped in self._skipped if skipped <= step),
            optimizer=job.training.optimizer_config.kind,
            tokenizer=job.tokenizer,
            optimizer_steps=snapshot.optimizer_steps,
            loss_scale=snapshot.loss_scale,
            world_size=self._world,
            code_version=__version__,
            stack=worker_stack(),
            tracking_run=job.tracking_run,
            attempt=self._attempt,
            ledger_events=None if job.fence is None else job.fence.first,
            ledger_sha256="" if job.fence is None else job.fence.sha256,
            files=files,
        )


def _remove_left_over() -> None:
    """Remove the local files of workers that were killed on this machine.

    The folder for temporary files may be shared by machines or pods, whose processes cannot be seen
    from here: theirs stay.
    """
    host = f"{_PREFIX}{_host()}-"
    for folder in Path(tempfile.gettempdir()).glob(f"{host}*-*-*"):
        boot, process, _ = folder.name.removeprefix(host).split("-", 2)
        is_alive = f"{_host()}-{boot}" == _this_boot() and Path("/proc", process).exists()
        if process.isdecimal() and not is_alive:
            shutil.rmtree(folder, ignore_errors=True)


def _host() -> str:
    """Return the name of this machine or pod, without what separates the parts of a name."""
    return socket.gethostname().replace("-", "_")


@cache
def _this_boot() -> str:
    """Return a name of this machine since its start, after which process numbers begin again."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    except OSError:
        boot = "0"
    return f"{_host()}-{boot}"


def _in_one_line(failed: BaseException) -> str:
    line = " ".join(f"{type(failed).__name__}: {failed}".split())[:400]
    remedy = remedy_of(failed)
    return f"{line}; {remedy}" if remedy else line
