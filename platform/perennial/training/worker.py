"""The function that every Ray Train worker runs: load, train, checkpoint."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import perennial
from perennial.mixture.stream import rank_dataset, step_batches
from perennial.schedules import to_dict
from perennial.store import Store, open_store
from perennial.training import checkpoint
from perennial.training.engine import build_engine, load_optimizer, save_optimizer, set_eta
from perennial.training.job import Job
from perennial.training.model import model_config, random_model, stored_model


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


class _Worker:
    def __init__(self, job: Job, store: Store, tap: Any) -> None:
        self._job = job
        self._store = store
        self._tap = tap
        self._rank = dist.get_rank()
        self._world = dist.get_world_size()
        self._rows: list[dict[str, Any]] = []

    def run(self) -> None:
        resumed = self._choose_start()
        first_step = self._job.first_step if resumed is None else resumed
        if first_step == self._job.last_step:
            return
        with ThreadPoolExecutor(1) as ahead:
            batches = self._batches(first_step - self._job.first_step)
            first = ahead.submit(next, batches)
            self._engine = self._build(resumed)
            step, tokens = first.result()
        if self._rank == 0:
            self._tap.started.remote(first_step, self._world)
        self._step_ended = time.monotonic()
        due = self._job.checkpoint_steps()
        while True:
            self._step(self._job.first_step + step, tokens)
            done = self._job.first_step + step + 1
            if done in due:
                self._save(done)
            if done == self._job.last_step:
                return
            step, tokens = next(batches)

    def _choose_start(self) -> int | None:
        """The step to resume from, chosen once: rank 0 asks the store, the others are told."""
        chosen: list[int | None] = [None]
        if self._rank == 0:
            chosen[0] = checkpoint.latest_step(self._store, self._job.folder)
        dist.broadcast_object_list(chosen, src=0)
        return chosen[0]

    def _batches(self, mix_step: int) -> Any:
        job = self._job
        dtype = np.dtype(job.dtype)
        dataset = rank_dataset(
            self._store,
            job.layouts,
            job.mix,
            job.sequence_length * dtype.itemsize,
            rank=self._rank,
            world_size=self._world,
            first_step=mix_step,
        )
        tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        return step_batches(tables, job.mix.global_batch // self._world, mix_step, dtype)

    def _build(self, resumed: int | None) -> Any:
        """The engine at the chosen step: the job's own checkpoint, its start's, or new weights."""
        job = self._job
        source = job.start if resumed is None else checkpoint.folder_of(job.folder, resumed)
        if source is None:
            config = model_config(
                job.model, job.vocabulary, job.end_of_document, job.sequence_length
            )
            return self._engine_around(random_model(config, job.seed))
        manifest = checkpoint.read_manifest(self._store, source)
        with_moments = resumed is not None or job.optimizer == "keep"
        names = [n for n in manifest.files if with_moments or not n.startswith("optimizer-")]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            checkpoint.download(self._store, source, names, folder)
            engine = self._engine_around(stored_model(folder))
            if with_moments:
                load_optimizer(engine, folder, manifest.optimizer_steps)
        return engine

    def _engine_around(self, model: torch.nn.Module) -> Any:
        return build_engine(model, self._job.training, self._job.mix.global_batch, self._world)

    def _step(self, step: int, tokens: np.ndarray) -> None:
        """One optimizer step on this rank's sequences `(sequences, sequence_length)`."""
        eta = self._job.eta(step)
        set_eta(self._engine, eta)
        micro = self._job.training.micro_batch
        total = torch.zeros((), device=self._engine.device)
        for first in range(0, len(tokens), micro):
            ids = torch.from_numpy(tokens[first : first + micro]).to(self._engine.device)
            loss = self._engine(input_ids=ids, labels=ids).loss
            self._engine.backward(loss)
            self._engine.step()
            total += loss.detach().float() * (len(ids) / len(tokens))
        self._record(step, eta, total)

    def _record(self, step: int, eta: float, loss: torch.Tensor) -> None:
        """Average the step's loss over all ranks and tell it; a loss that is not finite ends it."""
        dist.all_reduce(loss)
        mean = loss.item() / self._world
        if not math.isfinite(mean):
            raise RuntimeError(f"the loss is {mean} at step {step}; nothing after it is kept")
        now = time.monotonic()
        row = {
            "step": step + 1,
            "loss": mean,
            "eta": eta,
            "phase": self._job.phase(step),
            "batch_tokens": self._job.tokens_per_step,
            "tokens_per_second": self._job.tokens_per_step / (now - self._step_ended),
        }
        self._step_ended = now
        self._rows.append(row)
        if self._rank == 0:
            self._tap.push.remote([row])

    def _save(self, step: int) -> None:
        job = self._job
        key = checkpoint.folder_of(job.folder, step)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            name = f"optimizer-{self._rank:02d}-of-{self._world:02d}.safetensors"
            optimizer_steps = save_optimizer(self._engine, folder / name)
            if self._rank == 0:
                self._engine.module.save_pretrained(folder)
                lines = [json.dumps(row) for row in self._rows]
                (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
            files = checkpoint.upload(self._store, key, sorted(folder.iterdir()))
        gathered: list[Any] = [None] * self._world
        dist.all_gather_object(gathered, files)
        self._rows = []
        if self._rank == 0:
            self._commit(key, step, optimizer_steps, gathered)
        dist.barrier()

    def _commit(
        self, key: str, step: int, optimizer_steps: int, files: list[dict[str, Any]]
    ) -> None:
        job = self._job
        manifest = checkpoint.CheckpointManifest(
            name=job.name,
            step=step,
            phase=job.phase(step - 1),
            eta=job.eta(step - 1),
            schedule=to_dict(job.schedule),
            mix=job.mix.to_dict(),
            mix_step=step - job.first_step,
            tokens_seen=job.tokens_at(step),
            optimizer_steps=optimizer_steps,
            world_size=self._world,
            code_version=perennial.__version__,
            tracking_run=job.tracking_run,
            files={name: entry for part in files for name, entry in part.items()},
        )
        checkpoint.commit(self._store, key, manifest)
        self._tap.saved.remote(key)
