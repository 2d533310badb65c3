"""One run of `train_speed.py`: ARM MODEL WORKERS STEPS; prints its speed as a JSON line.

Step times are of rank 0, from the end of one optimizer step to the end of the next.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARMUP_STEPS = 4


def main() -> None:
    arm, model, workers, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with tempfile.TemporaryDirectory() as scratch:
        result = ARMS[arm](Path(scratch), model, workers, steps + WARMUP_STEPS)
    print(json.dumps(result))


def in_processes(rank_main: Callable[..., None]) -> Callable[..., dict[str, Any]]:
    """An arm whose ranks are plain processes, told of each other as torchrun does."""

    def arm(folder: Path, model: str, workers: int, steps: int) -> dict[str, Any]:
        import torch.multiprocessing as mp

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = (rank_main, port, workers, str(folder), model, steps)
        mp.spawn(_rank, args=arguments, nprocs=workers)
        seconds, *peaks = json.loads((folder / "result.json").read_text())
        return _result(model, seconds, max(peaks), None)

    return arm


def _rank(
    rank: int,
    rank_main: Callable[..., None],
    port: int,
    workers: int,
    folder: str,
    model: str,
    steps: int,
) -> None:
    import torch
    import torch.distributed as dist

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    _measure(rank_main, Path(folder), model, workers, steps)
    dist.destroy_process_group()


def _measure(
    rank_main: Callable[..., None], folder: Path, model: str, workers: int, steps: int
) -> None:
    """Train; rank 0 writes its seconds a step, and the peaks of all ranks."""
    import torch.distributed as dist

    seconds: list[float] = []
    rank_main(folder, model, workers, steps, seconds)
    peaks: list[Any] = [None] * workers
    dist.all_gather_object(peaks, peak_bytes(os.getpid()))
    if dist.get_rank() == 0:
        (folder / "result.json").write_text(json.dumps([seconds, *peaks]))
    dist.barrier()


def bare(folder: Path, model: str, workers: int, steps: int, seconds: list[float]) -> None:
    """DeepSpeed and nothing else; `perennial`'s own engine, so that both are set up alike."""
    import deepspeed  # noqa: F401, with what it imports where nothing keeps it away
    import torch
    import torch.distributed as dist
    from train_models import ETA, sequence_length, tokens_of, training_spec

    from perennial.training.engine.engine import build_engine, set_eta

    spec, tokens = training_spec(model, workers), tokens_of(model, steps).astype("int64")
    engine = build_engine(
        _model(model, sequence_length(model)), spec, spec.global_batch, workers, 0
    )
    set_eta(engine, ETA)
    share = spec.global_batch // workers
    for step in range(steps):
        began = time.perf_counter()
        first = step * spec.global_batch + dist.get_rank() * share
        for row in range(first, first + share, spec.micro_batch):
            ids = torch.from_numpy(tokens[row : row + spec.micro_batch])
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            engine.step()
        seconds.append(time.perf_counter() - began)


def bare_ray(folder: Path, model: str, workers: int, steps: int) -> dict[str, Any]:
    """The bare loop in workers of Ray Train that do nothing else."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    scaling = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.8})
    storage = RunConfig(name="bare", storage_path=str(folder / "ray"))
    asked = {"folder": str(folder), "model": model, "workers": workers, "steps": steps}
    TorchTrainer(
        _ray_rank, train_loop_config=asked, scaling_config=scaling, run_config=storage
    ).fit()
    ray.shutdown()
    seconds, *peaks = json.loads((folder / "result.json").read_text())
    return _result(model, seconds, max(peaks), None)


def _ray_rank(asked: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    _measure(bare, Path(asked["folder"]), asked["model"], asked["workers"], asked["steps"])


def bare_kept(folder: Path, model: str, workers: int, steps: int) -> dict[str, Any]:
    """The bare loop with `perennial`'s settings of the C library's allocator."""
    from train_models import VOCABULARY, sequence_length, training_spec

    from perennial.training.ray.environment import allocator_environment

    rows = training_spec(model, workers).micro_batch * sequence_length(model)
    # Read by the processes that it starts.
    os.environ |= allocator_environment(rows * VOCABULARY * 4)
    return in_processes(bare)(folder, model, workers, steps)


def trainer(folder: Path, model: str, workers: int, steps: int, seconds: list[float]) -> None:
    """Hugging Face's Trainer with DeepSpeed, as its documentation sets it up.

    With `use_cpu=True` it would leave DeepSpeed out without a word, and train with DDP.
    """
    import torch
    import transformers
    from deepspeed.ops import __compatible_ops__
    from train_models import ETA, sequence_length, tokens_of, training_spec

    # The same all-reduce as the others: this one would be compiled on first use.
    __compatible_ops__["deepspeed_shm_comm"] = False
    spec, tokens = training_spec(model, workers), tokens_of(model, steps).astype("int64")
    rows = torch.from_numpy(tokens)

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": rows[index], "labels": rows[index]}

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.ended = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            seconds.append(now - self.ended)
            self.ended = now

    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=spec.micro_batch,
        gradient_accumulation_steps=spec.global_batch // (workers * spec.micro_batch),
        learning_rate=ETA,
        lr_scheduler_type="constant",
        weight_decay=spec.weight_decay,
        adam_beta1=spec.betas[0],
        adam_beta2=spec.betas[1],
        max_grad_norm=spec.gradient_clip,
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        bf16=False,
        optim="adamw_torch",
        deepspeed={
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_optimization": {"stage": spec.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        },
    )
    loop = transformers.Trainer(
        model=_model(model, sequence_length(model)),
        args=arguments,
        train_dataset=Rows(),
        callbacks=[Clock()],
    )
    loop.train()
    assert loop.is_deepspeed_enabled
    assert type(loop.model_wrapped).__name__ == "DeepSpeedEngine"


def perennial(folder: Path, model: str, workers: int, steps: int) -> dict[str, Any]:
    """A job on Ray; its steps as it tells them."""
    import ray
    from train_models import write_job
    from train_restart_arms import training_workers

    from perennial.training.launcher import Progress, run_job

    job = write_job(folder / "store", model, workers, steps)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    rows: list[dict[str, Any]] = []
    peak, over = [0], threading.Event()

    def watch() -> None:
        """The kernel's own record of each training worker's highest resident size."""
        while not over.wait(0.5):
            for process in training_workers():
                peak[0] = max(peak[0], peak_bytes(process.pid))

    def on_progress(progress: Progress) -> None:
        rows.extend(progress.rows)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run_job(job, on_progress)
    finally:
        over.set()
        watcher.join()
        ray.shutdown()
    laps = [row["seconds"] for row in rows]
    data = sum(lap["data"] for lap in laps[WARMUP_STEPS:])
    whole = sum(sum(lap.values()) for lap in laps[WARMUP_STEPS:])
    return _result(model, [sum(lap.values()) for lap in laps], peak[0], data / whole)


def _model(model: str, sequence: int) -> Any:
    from train_models import VOCABULARY, model_spec

    from perennial.training.model.config import model_config, random_model

    return random_model(model_config(model_spec(model), VOCABULARY, 0, sequence), 1)


def peak_bytes(process: int) -> int:
    """Return the kernel's record of a process's highest resident size; 0 when it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    high = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return max((int(line.split()[1]) << 10 for line in high), default=0)


def _result(
    model: str, seconds: list[float], peak_bytes: int, data_share: float | None
) -> dict[str, Any]:
    from train_models import sequence_length, training_spec

    tokens = training_spec(model, 1).global_batch * sequence_length(model)
    return {
        "tokens_per_second": tokens / statistics.median(seconds[WARMUP_STEPS:]),
        "peak_bytes": peak_bytes,
        "data_share": data_share,
    }


ARMS = {
    "bare": in_processes(bare),
    "bare-kept": bare_kept,
    "bare-ray": bare_ray,
    "trainer": in_processes(trainer),
    "perennial": perennial,
}

if __name__ == "__main__":
    main()
