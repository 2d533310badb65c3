"""One run of `memory.py`: ARM MODEL SETTINGS; prints a JSON line with bytes for each settings."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from train_speed_arms import peak_bytes

WORKERS = 2
STEPS = 4


def main() -> None:
    """Print the bytes of the worker that took most."""
    arm, model, settings = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(ARMS[arm](Path(scratch), model, json.loads(settings))))


Settings = list[dict[str, Any]]


def tensors(folder: Path, model: str, settings: Settings) -> list[dict[str, int]]:
    """Two processes with the engine alone."""
    import torch.multiprocessing as mp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, args=(port, str(folder), model, settings), nprocs=WORKERS)
    of_ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORKERS)]
    return [
        {what: max(found[what] for found in same) for what in same[0]}
        for same in zip(*of_ranks, strict=True)
    ]


def _rank(rank: int, port: int, folder: str, model: str, settings: Settings) -> None:
    import torch
    import torch.distributed as dist

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORKERS),
        "LOCAL_WORLD_SIZE": str(WORKERS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = [_allocated(Path(folder), model, each) for each in settings]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _allocated(folder: Path, model: str, settings: dict[str, Any]) -> dict[str, int]:
    """Return the bytes of tensors between steps, and most in a step."""
    import gc

    import torch
    import torch.distributed as dist
    from allocations import AllocatedBytes
    from train_models import ETA, VOCABULARY, model_spec, sequence_length, tokens_of, training_spec

    from perennial.training.engine.deepspeed_internals import release_engine
    from perennial.training.engine.engine import build_engine, load_model, set_eta
    from perennial.training.model.config import model_config, random_model

    spec = training_spec(model, WORKERS).model_copy(update=settings)
    batch = spec.global_batch
    config = model_config(model_spec(model), VOCABULARY, 0, sequence_length(model))
    divided = spec.zero_stage == 3
    if divided and dist.get_rank() == 0:
        random_model(config, 1).save_pretrained(folder / "model")
    dist.barrier()
    gc.collect()
    tokens = torch.from_numpy(tokens_of(model, STEPS).astype("int64"))
    share = batch // WORKERS
    with AllocatedBytes() as allocated:
        # As a worker does, which loads its part alone where the weights are divided.
        begun = (
            load_model(folder / "model", spec, batch, WORKERS)
            if divided
            else random_model(config, 1)
        )
        engine = build_engine(begun, spec, batch, WORKERS, 0)
        del begun
        for step in range(STEPS):
            allocated.mark()
            set_eta(engine, ETA)
            first = step * batch + dist.get_rank() * share
            for row in range(first, first + share, spec.micro_batch):
                ids = tokens[row : row + spec.micro_batch]
                engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss)
                engine.step()
    release_engine(engine)
    # The first step makes the optimizer's state.
    return {"peak": max(allocated.peaks[2:]), "between": allocated.at_marks[-1]}


def workers(folder: Path, model: str, settings: Settings) -> list[dict[str, int]]:
    """Jobs on Ray."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        return [_resident(folder / str(n), model, each) for n, each in enumerate(settings)]
    finally:
        ray.shutdown()


def _resident(folder: Path, model: str, settings: dict[str, Any]) -> dict[str, int]:
    """Return the highest resident size of a worker of one job."""
    from train_models import write_job
    from train_restart_arms import training_workers

    from perennial.training.launcher import Progress, run_job

    job = write_job(folder, model, WORKERS, STEPS)
    job = replace(job, training=job.training.model_copy(update=settings))
    before, since = _Peaks(), _Peaks()
    began, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            if began.is_set() and not since.bytes:
                before.take(training_workers())
                for process in training_workers():
                    # From here on the highest size is that of the steps.
                    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
            (since if began.is_set() else before).take(training_workers())

    def on_progress(progress: Progress) -> None:
        if progress.rows:
            began.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run_job(job, on_progress)
    finally:
        over.set()
        watcher.join()
    return {"steps": since.bytes, "life": max(before.bytes, since.bytes)}


class _Peaks:
    """The highest resident size of any of some processes, by the kernel's record."""

    def __init__(self) -> None:
        self.bytes = 0

    def take(self, processes: list[Any]) -> None:
        for process in processes:
            self.bytes = max(self.bytes, peak_bytes(process.pid))


ARMS = {"tensors": tensors, "workers": workers}

if __name__ == "__main__":
    main()
