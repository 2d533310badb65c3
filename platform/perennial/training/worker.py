"""The function that every Ray Train worker runs: load, train, checkpoint."""

from __future__ import annotations

import logging
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
import torch.distributed as dist

from perennial.causes import find_cause
from perennial.errors import (
    Altered,
    InputError,
    Preempted,
    Spike,
    StartDamaged,
    StoreFailed,
)
from perennial.store import Store, open_run_store
from perennial.training.checkpoint.reader import ResumePoint, begin_from_latest
from perennial.training.checkpoint.resume import (
    batches_from,
    engine_at,
    load_state,
    read_resume_state,
)
from perennial.training.checkpoint.writer import Saver
from perennial.training.engine.collective_timer import meter_collectives
from perennial.training.engine.deepspeed_internals import release_engine
from perennial.training.engine.engine import gradient_norm, losses_of, overflowed, set_eta
from perennial.training.engine.grid import Grid
from perennial.training.engine.microbatch import (
    Weights,
    micro_batches,
    on_device,
    seed_dropout,
    weigh_sequences,
    weigh_targets,
)
from perennial.training.engine.profiling import Trace
from perennial.training.engine.scalar_allreduce import StepReduction, Votes
from perennial.training.engine.step_timer import Meter
from perennial.training.job import Job
from perennial.training.job_queue import await_job, end_job
from perennial.training.join_probe import JoinWatch
from perennial.training.metrics import StepFacts, measured_metrics
from perennial.training.ray.environment import return_freed_memory
from perennial.training.ray.hangs import note_collective, steps_watched
from perennial.training.ray.preemption import is_ending
from perennial.training.ray.progress import RowBuffer
from perennial.training.spikes.response import SpikeResponse


def train(config: dict[str, Any]) -> None:
    """Train jobs, one after the other, on this rank, each from its latest committed checkpoint.

    Anything but the end of a job ends the worker group: only what went well goes on in the same
    processes.
    """
    _quiet_libraries()
    driver = config["driver"]
    while (job := await_job(driver)) is not None:
        torch.set_num_threads(job.training.threads_per_worker)
        if not end_job(driver, _Worker(job, open_run_store(job.store_url), driver).run()):
            return


def _quiet_libraries() -> None:
    # Their notes on every start are no news to the user, and hide what is.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("transformers").setLevel(logging.ERROR)


class _Begun(NamedTuple):
    """A worker that is ready to train.

    start: the checkpoint that it begins from.
    step: first step of the mix that is not trained yet; tokens: this rank's sequences of it,
        `(sequences, sequence_length)`; batches: iterates over the steps that follow.
    """

    start: ResumePoint
    step: int
    tokens: np.ndarray
    batches: Any


class _Worker:
    """One rank of a worker group. All ranks take the same steps and decisions."""

    def __init__(self, job: Job, store: Store, driver: Any) -> None:
        """Prepare to run; nothing is loaded yet. `driver` is the handle of its progress actor."""
        self._job = job
        self._store = store
        self._driver = driver
        self._grid = grid = Grid.here(job.training.tensor_parallel)
        self._rank, self._world = grid.rank, grid.world_size
        self._parts = micro_batches(
            job.mix.global_batch, job.training.micro_batch, grid.data_rank, grid.data_size
        )
        self._rows = RowBuffer(driver, self._rank)
        self._meter = Meter()
        self._row: dict[str, Any] = {}
        self._seen_before = sum(job.tokens_seen.values()) + job.tokens_elsewhere
        self._engine: Any = None
        self._batches: Any = None
        self._joins: JoinWatch | None = None
        self._saver: Saver | None = None
        self._votes = Votes()
        self._is_done = False

    def run(self) -> bool:
        """Train to completion, rolling back on loss spikes; return whether the last step is stored.

        Nothing of the job stays in the process then. Where another worker group would only meet
        the same problem again, the driver is sent the reason and nothing is raised: Ray Train would
        start another group for an exception.
        """
        try:
            while not self._run_to_end_or_spike():
                pass
            if self._is_done:
                self._leave()
        except (StartDamaged, StoreFailed, InputError) as end:
            if self._rank == 0:
                ray.get(self._driver.stopped.remote(str(end)))
        except Exception as failure:
            altered = find_cause(failure, Altered)
            if altered is not None:
                # Met by this rank alone: raising ends the others, and the next group ends at once.
                ray.get(self._driver.stopped.remote(str(altered)))
            raise
        finally:
            self._rows.flush()
            self._close_saver()
        return self._is_done

    def _leave(self) -> None:
        """Free what the job has taken in this process, which may train another one."""
        if self._saver is not None:
            self._saver.leave_group()
        if self._batches is not None:
            self._batches.close()
        self._drop_engine()
        return_freed_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _run_to_end_or_spike(self) -> bool:
        """Return whether training is over; False to start again without a spike's batch."""
        try:
            self._train()
        except Spike as raised:
            # Its traceback holds the failed step's tensors, and the engine.
            spike = raised.with_traceback(None)
        else:
            return True
        # Outside the handler, which keeps the traceback of what it handles.
        return not self._roll_back(spike)

    def _close_saver(self) -> None:
        if self._saver is not None:
            self._saver.close()
        self._saver = None

    def _train(self) -> None:
        if not self._may_train():
            return
        self._grid.check_nodes()
        with tempfile.TemporaryDirectory(prefix="perennial-start-") as scratch:
            begun = begin_from_latest(
                self._job, self._store, Path(scratch), self._driver, self._begin
            )
            if begun is None:
                self._is_done = True
                return
            start, step, tokens, batches = begun
            self._equip(start)
        if self._rank == 0:
            self._driver.started.remote(start.step, self._world)
        self._meter.lap()
        meter = self._meter
        with steps_watched(lambda: meter.part not in ("data", "checkpoint"), lambda: meter.done):
            self._take_steps(step, tokens, batches)

    def _take_steps(self, step: int, tokens: np.ndarray, batches: Any) -> None:
        """Take steps to the end of the job; the arguments are those of `_Begun`."""
        while True:
            self._trace.step()
            done = self._job.first_step + step + 1
            if done in self._state.skipped:
                self._skip(done)
            else:
                self._step(done - 1, tokens)
                assert self._joins is not None
                self._row |= self._joins.after(done)
            if self._open_saver.wants(done) or self._votes.ending:
                self._finish_reduction()
                self._meter.to("checkpoint")
                self._save(done)
            if done == self._job.last_step or self._votes.stop:
                self._trace.close()
                self._is_done = done == self._job.last_step
                return
            self._meter.to("data")
            step, tokens = next(batches)

    def _may_train(self) -> bool:
        """Return whether no other controller has claimed the job, and no worker has stopped it.

        Rank 0 asks and broadcasts.
        """
        answer: list[bool] = [True]
        if self._rank == 0:
            is_stopped = ray.get(self._driver.is_stopped.remote())
            answer[0] = not is_stopped and self._job.may_commit(self._store)
        dist.broadcast_object_list(answer, src=0)
        return answer[0]

    def _begin(self, start: ResumePoint) -> _Begun | None:
        """Build the engine and the data at the job's present step; None when the job is done."""
        job = self._job
        if start.step == job.last_step:
            return None
        self._read_state(start)
        self._drop_engine()
        # The first batch is read while the engine is built, which takes longer.
        with ThreadPoolExecutor(1) as ahead:
            mix_step = start.step - job.first_step
            group, groups = self._grid.data_rank, self._grid.data_size
            batches = batches_from(self._store, job, mix_step, group, groups)
            self._batches = batches
            first = ahead.submit(next, batches)
            self._engine = engine_at(job, start, self._world)
            load_state(self._engine, job, start)
            step, tokens = first.result()
        return_freed_memory()
        return _Begun(start, step, tokens, batches)

    def _equip(self, start: ResumePoint) -> None:
        """Build what training needs besides the engine and the data."""
        job = self._job
        self._metrics = measured_metrics()
        self._saver = self._open_saver = Saver(
            job, self._store, self._driver, start.history, self._state.skipped
        )
        self._votes = Votes()
        meter_collectives(self._meter, note_collective)
        self._reduction = StepReduction(self._engine.device, counts=self._grid.leads)
        self._joins = JoinWatch(self._store, job, self._engine, start.step)
        key = f"profiles/{job.name}/{start.step:08d}-rank-{self._rank:02d}.json.gz"
        self._trace = Trace(self._store, key, wanted=job.training.profile)

    def _read_state(self, start: ResumePoint) -> None:
        """Read the job's past on rank 0 and broadcast it: the ranks must agree on what to skip."""
        state: list[Any] = [None]
        if self._rank == 0:
            rows = start.last_rows(self._job.training.spikes.window)
            state[0] = read_resume_state(self._store, self._job.folder, rows)
        dist.broadcast_object_list(state, src=0)
        self._state = state[0]
        self._spikes = SpikeResponse(self._job, self._store, self._driver, self._state)

    def _roll_back(self, spike: Spike) -> bool:
        """Drop everything since the last checkpoint; False when training must stop instead."""
        # A snapshot under way is of a step before the spike, and may still become the checkpoint.
        self._open_saver.leave_group()
        self._close_saver()
        again = self._spikes.can_skip
        if self._rank == 0:
            self._spikes.record(spike)
        self._trace.close()
        self._drop_engine()
        self._rows.take()
        # No rank may read the skips before rank 0 has recorded this one.
        dist.barrier()
        return again

    def _drop_engine(self) -> None:
        self._joins = None
        if self._engine is not None:
            release_engine(self._engine)
        self._engine = None

    def _skip(self, done: int) -> None:
        """Let the step that leads to `done` pass without training its batch."""
        self._finish_reduction()
        self._rows.add_silently(
            {
                "step": done,
                "eta": self._job.eta(done - 1),
                "phase": self._job.phase(done - 1),
                "batch_tokens": 0,
            }
        )

    def _save(self, step: int) -> None:
        """Save as the ranks agreed; wait for the store only where training ends.

        Raises:
            Preempted: for Ray Train to start another worker group.
            StoreFailed: too many checkpoints failed, and another group would fare no better.
        """
        votes, saver = self._votes, self._open_saver
        if votes.hopeless:
            saver.finish()
        ending = votes.ending or step == self._job.last_step
        if votes.busy and not ending and not saver.needs(step):
            saver.put_off(step)
            return
        saver.save(self._engine, step, self._rows.take(), needed=ending)
        if ending:
            saver.finish()
        if votes.preempted and not votes.stop and step < self._job.last_step:
            raise Preempted(f"this worker group was asked to end; step {step} is stored")

    def _step(self, step: int, tokens: np.ndarray) -> None:
        """Take one optimizer step on this rank's sequences `(sequences, sequence_length)`."""
        job, engine, meter = self._job, self._engine, self._meter
        set_eta(engine, job.eta(step))
        seed_dropout(job.seed, step, self._grid.data_rank)
        ahead = on_device((tokens[part.rows] for part in self._parts), engine.device)
        weights = self._weigh(tokens)
        total = torch.zeros((), device=engine.device)
        balance: Any = 0.0
        norm: Any = None
        for part, factor, share in zip(self._parts, weights.factors, weights.shares, strict=True):
            meter.to("forward")
            ids = next(ahead)
            losses = losses_of(engine, ids, job.training, job.end_of_document, job.padded)
            meter.to("backward")
            engine.backward(losses.objective * factor)
            total += losses.loss.detach().float() * share
            if losses.balance is not None:
                balance = balance + losses.balance.detach().float() * share
            if part is self._parts[-1]:
                # Before this step's gradients become weights: the step before must be no spike,
                # and its snapshot must have been written.
                self._finish_reduction()
                meter.to("checkpoint")
                self._open_saver.wait_for_snapshot()
            meter.to("optimizer")
            norm = gradient_norm(engine)
            engine.step()
        meter.to("communication")
        if norm is None:
            norm = 0.0 if overflowed(engine) else engine.get_global_grad_norm()
        uneven = None if losses.balance is None else balance
        seconds, padding = meter.seconds(), weights.padding
        facts = StepFacts(job, step, engine, total, norm, uneven, seconds, padding)
        self._start_reduction(facts)
        self._start_row(step)

    def _weigh(self, tokens: np.ndarray) -> Weights:
        """Return what every micro batch of a step counts for."""
        job = self._job
        if not job.padded:
            return weigh_sequences(self._parts, job.mix.global_batch)
        self._meter.to("communication")
        note_collective()
        device = self._engine.device
        return weigh_targets(self._parts, tokens, job.end_of_document, device, self._grid)

    def _start_reduction(self, facts: StepFacts) -> None:
        """Begin to combine the step's metrics and this rank's votes over the ranks."""
        values = {
            name: (metric.combine, value)
            for name, metric in self._metrics.items()
            if (value := metric.measure(facts)) is not None
        }
        saver = self._open_saver
        votes = Votes(self._rows.stop_requested, is_ending(), bool(saver.hopeless), saver.busy)
        note_collective()
        self._reduction.start(values, votes)

    def _start_row(self, step: int) -> None:
        """Note what is known of a step before its metrics have come back from all ranks."""
        seconds = self._meter.lap()
        self._meter.to("other")
        trained = step + 1 - self._job.first_step
        trained -= sum(skipped <= step for skipped in self._state.skipped)
        self._row = {
            "step": step + 1,
            "eta": self._job.eta(step),
            "phase": self._job.phase(step),
            "batch_tokens": self._job.tokens_per_step,
            "tokens_per_second": self._job.tokens_per_step / sum(seconds.values()),
            "seconds": seconds,
            "tokens_seen": self._seen_before + trained * self._job.tokens_per_step,
        }

    def _finish_reduction(self) -> None:
        """Take the last step's metrics and votes, and add its row. Raises Spike."""
        before = self._meter.to("communication")
        reduced = self._reduction.finish()
        self._meter.to("other")
        if reduced is not None:
            self._votes = reduced.votes
            row = self._row | reduced.values
            self._spikes.judge(row)
            self._rows.add(row)
        self._meter.to(before)
