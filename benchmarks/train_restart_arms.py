"""One measurement of `train_restart.py`: ARM MODEL; prints a JSON line."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.ray_nodes import Nodes

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))  # for the tests' cluster of several nodes

WORKERS = 2
EVERY_STEPS = 6
GROW_STEPS = 36
"""Enough for a new node to be found while they are trained."""


def main() -> None:
    arm, model = sys.argv[1], sys.argv[2]
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(ARMS[arm](Path(scratch), model)))


def training_workers() -> list[Any]:
    """Processes of the training workers that this process's own Ray started."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "TrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile
    return found


class _Steps:
    """When steps end, as a driver hears of them, and the kill of a worker after `after` steps."""

    def __init__(self, after: int) -> None:
        self._after = after
        self._killed: float | None = None
        self._step = 0
        self.seconds: float | None = None

    def ended(self, step: int) -> None:
        if self._killed is None and step >= self._after:
            victim = training_workers()[-1]
            self._step, self._killed = step, time.perf_counter()
            os.kill(victim.pid, signal.SIGKILL)
        elif self._killed is not None and self.seconds is None and step > self._step:
            self.seconds = time.perf_counter() - self._killed


def kill(folder: Path, model: str) -> dict[str, float]:
    """A job whose worker is killed right after a checkpoint, so that no step is done again."""
    import ray
    from train_models import write_job

    from perennial.training.launcher import Progress, run_job

    job = write_job(folder, model, WORKERS, 2 * EVERY_STEPS, EVERY_STEPS)
    steps = _Steps(EVERY_STEPS)

    def on_progress(progress: Progress) -> None:
        for key in progress.saved:
            steps.ended(int(key.rsplit("/", 1)[-1]))
        for row in progress.rows:
            if row["step"] != EVERY_STEPS:
                steps.ended(row["step"])

    _start_ray()
    run_job(job, on_progress)
    ray.shutdown()
    assert steps.seconds is not None
    return {"seconds": steps.seconds}


def floor(folder: Path, model: str) -> dict[str, float]:
    """The same kill of a loop that loads nothing: what Ray Train needs by itself."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    _start_ray()
    board = ray.remote(_Board).options(num_cpus=0).remote()
    steps, over = _Steps(EVERY_STEPS), threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for step in ray.get(board.take.remote()):
                steps.ended(step)

    watcher = threading.Thread(target=watch)
    watcher.start()
    trainer = TorchTrainer(
        _empty_loop,
        train_loop_config={"board": board, "steps": EVERY_STEPS},
        scaling_config=ScalingConfig(
            num_workers=WORKERS, use_gpu=False, resources_per_worker={"CPU": 0.8}
        ),
        run_config=RunConfig(
            name="floor", storage_path=str(folder), failure_config=FailureConfig(max_failures=3)
        ),
    )
    trainer.fit()
    over.set()
    watcher.join()
    ray.shutdown()
    assert steps.seconds is not None
    return {"seconds": steps.seconds}


class _Board:
    """An actor on which rank 0 notes its steps."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._starts = 0

    def started(self) -> int:
        self._starts += 1
        return self._starts

    def note(self, step: int) -> None:
        self._steps.append(step)

    def take(self) -> list[int]:
        steps, self._steps = self._steps, []
        return steps


def _empty_loop(config: dict[str, Any]) -> None:
    import ray
    import torch.distributed as dist

    if dist.get_rank() == 0:
        start = ray.get(config["board"].started.remote())
        first = (start - 1) * config["steps"] + 1
        for step in range(first, first + config["steps"]):
            ray.get(config["board"].note.remote(step))
        while start == 1:  # until it is killed
            time.sleep(0.05)
    dist.barrier()


class _Resize:
    """Seconds from the last step of one world size to the first new step of another.

    due: set at the first checkpoint, for the cluster to be changed then.
    """

    def __init__(self) -> None:
        self.due = threading.Event()
        self._workers = 0
        self._last = (0, 0.0)
        self._left: float | None = None
        self.seconds: float | None = None

    def heard(self, progress: Any) -> None:
        """Take the news of a job."""
        now = time.perf_counter()
        for _, workers in progress.started:
            self._workers, before = workers, self._workers
            if before and before != workers:
                self._left = self._last[1]
        for row in progress.rows:
            if row["step"] > self._last[0]:
                if self._left is not None and self.seconds is None:
                    self.seconds = now - self._left
                self._last = (row["step"], now)
        if progress.saved:
            self.due.set()


def shrink(folder: Path, model: str) -> dict[str, float]:
    """Of two nodes with a worker each, one is gone right after a checkpoint."""
    return _resized(folder, model, 2 * EVERY_STEPS, 2, lambda nodes: nodes.kill(0))


def grow(folder: Path, model: str) -> dict[str, float]:
    """A second node joins; the worker of the first one saves before there are two."""
    return _resized(folder, model, GROW_STEPS, 1, lambda nodes: nodes.add())


def _resized(
    folder: Path, model: str, steps: int, nodes: int, change: Callable[[Nodes], None]
) -> dict[str, float]:
    import ray
    from train_models import write_job

    from perennial.training.launcher import run_job
    from tests.support.ray_nodes import ray_nodes

    job = write_job(folder, model, {"min": 1, "max": 2}, steps, EVERY_STEPS)
    with ray_nodes(count=nodes) as cluster:
        ray.init(cluster.environment["RAY_ADDRESS"], log_to_driver=False)
        resize = _Resize()
        training = threading.Thread(target=run_job, args=(job, resize.heard))
        training.start()
        resize.due.wait()
        change(cluster)  # here, because Ray starts nodes in main threads only
        training.join()
        ray.shutdown()
    assert resize.seconds is not None
    return {"seconds": resize.seconds}


def load(folder: Path, model: str) -> dict[str, float]:
    """Importing what a worker needs and building its engine from a checkpoint, without Ray.

    In as many processes at once as the job has workers; the slowest counts.
    """
    _train_alone(folder, model)
    script = "import train_restart_arms as a, sys; print(a.load_seconds(*sys.argv[1:]))"
    command = [sys.executable, "-c", script, str(folder), model]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(WORKERS)
    ]
    told = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise SystemExit("a rank could not load its checkpoint")
    return {"seconds": max(float(text.strip().splitlines()[-1]) for text in told)}


def load_seconds(folder: str, model: str, rank: str) -> float:
    """In a process that has imported nothing yet."""
    began = time.perf_counter()
    import torch.distributed as dist
    from train_models import training_spec

    from perennial.store import open_store
    from perennial.training.checkpoint import manifest as checkpoint
    from perennial.training.engine.engine import build_engine
    from perennial.training.engine.optimizer_state import load_optimizer
    from perennial.training.model.config import stored_model

    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(WORKERS)}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=int(rank), world_size=WORKERS
    )
    store, spec = open_store(folder), training_spec(model, WORKERS)
    step = checkpoint.latest_step(store, "checkpoints/bench")
    assert step is not None
    key = checkpoint.folder_of("checkpoints/bench", step)
    manifest = checkpoint.read_manifest(store, key)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint.download(store, key, manifest, manifest.files, Path(scratch))
        engine = build_engine(stored_model(Path(scratch)), spec, spec.global_batch, WORKERS, 0)
        files = sorted(Path(scratch).glob("optimizer-*"))
        load_optimizer(engine, spec.optimizer_config, files, manifest.optimizer_steps)
    return time.perf_counter() - began


def _train_alone(folder: Path, model: str) -> list[dict[str, Any]]:
    """A short job of one worker with four checkpoints before its last; its rows."""
    import ray
    from train_models import write_job

    from perennial.training.launcher import run_job

    rows: list[dict[str, Any]] = []
    job = write_job(folder, model, 1, 5 * EVERY_STEPS, EVERY_STEPS)
    _start_ray()
    run_job(job, lambda progress: rows.extend(progress.rows))
    ray.shutdown()
    return rows


def checkpoint_stall(folder: Path, model: str) -> dict[str, float]:
    """The time of a checkpoint inside a job, and a save of as many bytes that is waited for.

    stall: seconds that training waits. slower: seconds by which the step beside which a checkpoint
    is written and stored is longer than the others, its stall included.
    """
    import torch
    from train_models import VOCABULARY, model_spec, sequence_length

    from perennial.training.model.config import model_config, random_model

    rows = _train_alone(folder / "store", model)
    laps = {row["step"]: row["seconds"] for row in rows}
    beside = [step for step in laps if step > EVERY_STEPS and step % EVERY_STEPS == 1]
    others = [step for step in laps if step > 4 and step not in beside]
    stalls = [laps[step]["checkpoint"] for step in beside]
    usual = statistics.median(sum(laps[step].values()) for step in others)
    slower = statistics.median(sum(laps[step].values()) for step in beside) - usual
    config = model_config(model_spec(model), VOCABULARY, 0, sequence_length(model))
    weights = random_model(config, 1).state_dict()
    state = {part: {n: t.clone() for n, t in weights.items()} for part in ("w", "m", "v")}
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        with (folder / "state.pt").open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())  # as a store does before a checkpoint counts
        seconds.append(time.perf_counter() - began)
    return {
        "stall": statistics.median(stalls),
        "synchronous": statistics.median(seconds),
        "slower": slower,
        "step": usual,
    }


def _start_ray() -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)


ARMS = {
    "floor": floor,
    "kill": kill,
    "shrink": shrink,
    "grow": grow,
    "load": load,
    "checkpoint": checkpoint_stall,
}

if __name__ == "__main__":
    main()
