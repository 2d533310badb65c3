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

from perennial.errors import InputError, Preempted, Spike, StartDamaged, StoreFailed
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.checkpoint.reader import ResumePoint, begin_from_latest
from perennial.training.checkpoint.resume import (
    ResumeState,
    batches_from,
    engine_at,
    load_moments,
    read_resume_state,
)
from perennial.training.checkpoint.writer import Saver
from perennial.training.engine.collective_timer import meter_collectives
from perennial.training.engine.engine import gradient_norm, loss_of, overflowed, set_eta
from perennial.training.engine.microbatch import micro_batches, on_device, seed_dropout
from perennial.training.engine.profiling import Trace
from perennial.training.engine.scalar_allreduce import StepReduction, Votes
from perennial.training.engine.step_timer import Meter
from perennial.training.job import Job
from perennial.training.join_probe import JoinWatch
from perennial.training.metrics import StepFacts, measured_metrics
from perennial.training.ray.preemption import is_ending
from perennial.training.ray.progress import News
from perennial.training.spikes.detector import SpikeWatch
from perennial.training.spikes.messages import advice, described, skip_of
from perennial.training.spikes.skips import record_skip


def train(config: dict[str, Any]) -> None:
    """Train a job from its latest committed checkpoint to its end, on this rank."""
    _quiet()
    job = Job.from_dict(config["job"])
    torch.set_num_threads(max(1, int(job.training.cpus_per_worker)))
    _Worker(job, open_store(job.store_url), config["tap"]).run()


def _quiet() -> None:
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("transformers").setLevel(logging.ERROR)


class _Begun(NamedTuple):
    """step: the first step of the mix that is not trained yet; tokens: this rank's sequences of it
    `(sequences, sequence_length)`; batches: those that follow.
    """

    start: ResumePoint
    step: int
    tokens: np.ndarray
    batches: Any


class _Worker:
    def __init__(self, job: Job, store: Store, tap: Any) -> None:
        self._job = job
        self._store = store
        self._tap = tap
        self._rank = dist.get_rank()
        self._world = dist.get_world_size()
        self._parts = micro_batches(
            job.mix.global_batch, job.training.micro_batch, self._rank, self._world
        )
        self._metrics = measured_metrics()
        self._news = News(tap, self._rank)
        self._meter = Meter()
        self._row: dict[str, Any] = {}
        self._seen_before = sum(job.tokens_seen.values())
        self._engine: Any = None
        self._saver: Saver | None = None
        self._told = Votes()

    def run(self) -> None:
        """Train to the end, however often a spike rolls the job back, or to what stops it.

        Where another worker group would only meet the same again, the driver is told why, and
        nothing is raised.
        """
        try:
            while not self._ran():
                pass
        except (StartDamaged, StoreFailed, InputError) as end:
            if self._rank == 0:
                ray.get(self._tap.stopped.remote(str(end)))
        finally:
            self._news.flush()
            self._close_saver()

    def _ran(self) -> bool:
        """Run once; whether that was all."""
        try:
            self._run()
        except Spike as spike:
            trouble = spike
        else:
            return True
        return not self._roll_back(trouble)

    def _close_saver(self) -> None:
        if self._saver is not None:
            self._saver.close()
        self._saver = None

    def _run(self) -> None:
        if not self._may_go_on():
            return
        with tempfile.TemporaryDirectory(prefix="perennial-start-") as scratch:
            begun = begin_from_latest(self._job, self._store, Path(scratch), self._tap, self._begin)
            if begun is None:
                return
            start, step, tokens, batches = begun
            self._equip(start)
        if self._rank == 0:
            self._tap.started.remote(start.step, self._world)
        self._meter.lap()
        while True:
            self._trace.step()
            done = self._job.first_step + step + 1
            if done in self._memory.skipped:
                self._skip(done)
            else:
                self._step(done - 1, tokens)
                self._row |= self._joins.after(done)
            if self._open_saver.wants(done) or self._told.ending:
                self._settle()
                self._meter.to("checkpoint")
                self._save(done)
            if done == self._job.last_step or self._told.stop:
                self._trace.close()
                return
            self._meter.to("data")
            step, tokens = next(batches)

    def _may_go_on(self) -> bool:
        """Whether nobody took the job over, asked once: rank 0 asks, the others are told."""
        told: list[bool] = [True]
        if self._rank == 0:
            told[0] = self._job.may_commit(self._store)
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def _begin(self, start: ResumePoint) -> _Begun | None:
        """The engine and the data at the job's present step; None when the job is done."""
        job = self._job
        if start.step == job.last_step:
            return None
        self._remember(start)
        self._drop_engine()
        with ThreadPoolExecutor(1) as ahead:
            mix_step = start.step - job.first_step
            batches = batches_from(self._store, job, mix_step, self._rank, self._world)
            first = ahead.submit(next, batches)
            self._engine = engine_at(self._store, job, start, self._world)
            load_moments(self._engine, job, start)
            step, tokens = first.result()
        return _Begun(start, step, tokens, batches)

    def _equip(self, start: ResumePoint) -> None:
        """All that training needs besides the engine and the data."""
        job = self._job
        self._saver = self._open_saver = Saver(
            job, self._store, self._tap, start.history, self._memory.skipped
        )
        self._told = Votes()
        meter_collectives(self._meter)
        self._reduction = StepReduction(self._engine.device)
        self._joins = JoinWatch(self._store, job, self._engine, start.step)
        key = f"profiles/{job.name}/{start.step:08d}-rank-{self._rank:02d}.json.gz"
        self._trace = Trace(self._store, key, wanted=job.training.profile)

    def _remember(self, start: ResumePoint) -> None:
        """Know the job's past: rank 0 reads it, the others are told."""
        spikes = self._job.training.spikes
        told: list[Any] = [None]
        if self._rank == 0:
            told[0] = read_resume_state(
                self._store, self._job.folder, start.last_rows(spikes.window)
            )
        dist.broadcast_object_list(told, src=0)
        self._memory: ResumeState = told[0]
        self._spikes = self._memory.spikes
        self._watch = SpikeWatch(spikes, self._memory.losses)

    def _roll_back(self, spike: Spike) -> bool:
        """Leave the spike's batch out and be ready to start again; False when the job must stop."""
        job = self._job
        policy = job.training.spikes
        self._open_saver.wait()
        self._close_saver()
        again = (
            policy.policy == "rollback-and-skip" and len(self._memory.skipped) < policy.max_skips
        )
        if self._rank == 0:
            committed = checkpoint.latest_step(self._store, job.folder)
            if again:
                record_skip(self._store, job.folder, skip_of(job, spike))
                stands = job.first_step if committed is None else committed
                told = f"{described(job, spike)}; going on from step {stands} without this batch"
                self._tap.skipped.remote(told)
            else:
                # No exception: another worker group would only meet the same batch again.
                ray.get(self._tap.stopped.remote(advice(job, spike, committed)))
        self._trace.close()
        self._drop_engine()
        self._news.take()
        dist.barrier()
        return again

    def _drop_engine(self) -> None:
        if self._engine is not None:
            self._engine.destroy()
        self._engine = None

    def _skip(self, done: int) -> None:
        """Let the step that leads to `done` go by without training its batch."""
        self._settle()
        self._news.keep(
            {
                "step": done,
                "eta": self._job.eta(done - 1),
                "phase": self._job.phase(done - 1),
                "batch_tokens": 0,
            }
        )

    def _save(self, step: int) -> None:
        """Save as the ranks agreed; wait for the store only where training ends.

        Raises Preempted for Ray Train to start another worker group, StoreFailed when none would
        help.
        """
        told, saver = self._told, self._open_saver
        if told.hopeless:
            saver.finish()
        ending = told.ending or step == self._job.last_step
        if told.busy and not ending and not saver.needs(step):
            saver.put_off(step)
            return
        saver.save(self._engine, step, self._news.take(), needed=ending)
        if ending:
            saver.finish()
        if told.preempted and not told.stop and step < self._job.last_step:
            raise Preempted(f"this worker group was told that it ends; step {step} is stored")

    def _step(self, step: int, tokens: np.ndarray) -> None:
        """One optimizer step on this rank's sequences `(sequences, sequence_length)`."""
        job, engine, meter = self._job, self._engine, self._meter
        set_eta(engine, job.eta(step))
        seed_dropout(job.seed, step, self._rank)
        ahead = on_device((tokens[part.rows] for part in self._parts), engine.device)
        total = torch.zeros((), device=engine.device)
        norm: Any = None
        for part in self._parts:
            meter.to("forward")
            ids = next(ahead)
            loss = loss_of(engine, ids, job.training, job.end_of_document)
            meter.to("backward")
            engine.backward(loss * part.weight)
            total += loss.detach().float() * (part.sequences / job.mix.global_batch)
            if part is self._parts[-1]:
                # before this step's gradients become weights
                self._settle()
                meter.to("checkpoint")
                self._open_saver.wait_for_snapshot()
            meter.to("optimizer")
            norm = gradient_norm(engine)
            engine.step()
        meter.to("communication")
        if norm is None:
            norm = 0.0 if overflowed(engine) else engine.get_global_grad_norm()
        votes = Votes(
            self._news.stop, is_ending(), bool(self._open_saver.hopeless), self._open_saver.busy
        )
        facts = StepFacts(job, step, engine, total, norm)
        values = {n: (m.combine, m.measure(facts)) for n, m in self._metrics.items()}
        self._reduction.start(
            {name: (how, value) for name, (how, value) in values.items() if value is not None},
            votes,
        )
        self._end_step(step)

    def _end_step(self, step: int) -> None:
        """Note what is known of a step before its loss has come back from all ranks."""
        seconds = self._meter.lap()
        self._meter.to("other")
        trained = step + 1 - self._job.first_step
        trained -= sum(skipped <= step for skipped in self._memory.skipped)
        self._row = {
            "step": step + 1,
            "eta": self._job.eta(step),
            "phase": self._job.phase(step),
            "batch_tokens": self._job.tokens_per_step,
            "tokens_per_second": self._job.tokens_per_step / sum(seconds.values()),
            "seconds": seconds,
            "tokens_seen": self._seen_before + trained * self._job.tokens_per_step,
        }

    def _settle(self) -> None:
        """Hear what the last step's loss was on all ranks, and tell it. Raises Spike."""
        before = self._meter.to("communication")
        reduced = self._reduction.finish()
        self._meter.to("other")
        if reduced is not None:
            self._told = reduced.votes
            row = self._row | reduced.values
            problem = self._watch.judge(row["loss"], row["gradient_norm"])
            if problem is not None:
                if not problem.finite or self._job.training.spikes.policy != "ignore":
                    raise Spike(row["step"], problem.text, problem.finite)
                self._spikes += 1
                row["spike"] = problem.text
            if self._spikes:
                row["spikes"] = self._spikes
            self._news.add(row)
        self._meter.to(before)
