"""Memory of a worker as `perennial plan` predicts it, beside what real workers take.

    python benchmarks/memory.py > benchmarks/results/memory.md

Tensors: two processes over gloo train with the engine, its model and its tokens alone; torch's own
record of allocations gives what tensors take between steps, and the most that they take in a step.
That is what `torch.cuda.max_memory_allocated` is on a GPU. Workers: a job on Ray with the same
model; the kernel's record of the highest resident size of a training worker, over its whole life
and from the end of its first step on. What a C library keeps, libraries and shared pages are in it.
Beside: that record of a worker, of one of Ray Train that does a bare loop of DeepSpeed and nothing
else, and of a bare loop in a process of its own; same engine, model, batches and optimizer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arms import run_arm
from train_models import MODELS, VOCABULARY, model_spec, sequence_length, training_spec

from perennial.training.cost_model import model_size
from perennial.training.memory_model import host_memory, worker_memory
from perennial.training.model.config import model_config

SCRIPT = Path(__file__).parent / "memory_arms.py"
LOOPS = Path(__file__).parent / "train_speed_arms.py"
BESIDE = (("small", 1), ("small", 2), ("20M", 1), ("20M", 2))
"""models, and their numbers of workers"""
STEPS = 6
STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16")
WORKERS = 2
GIB = 2**30


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="20M")
    parser.add_argument("--stages", type=int, nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--arms", nargs="+", choices=("tensors", "workers", "beside"))
    parser.add_argument("--rounds", type=int, default=3, help="of the bare loops; medians count")
    asked = parser.parse_args()
    libraries = ("torch", "deepspeed", "ray", "transformers")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    length = sequence_length(asked.model)
    size = model_size(model_config(model_spec(asked.model), VOCABULARY, 0, length))
    print(f"`{' '.join(['python', *sys.argv])}`  ")
    print(f"{versions}; {os.cpu_count()} cores, no GPU; load {os.getloadavg()[0]:.1f} at the start")
    print(f"\n{size.parameters:,} parameters, {WORKERS} workers, sequences of {length}; GiB")
    arms = {"tensors": _print_tensors, "workers": _print_workers, "beside": _print_beside}
    for arm, show in arms.items():
        if asked.arms is None or arm in asked.arms:
            show(size, asked)


def _print_tensors(size: Any, asked: argparse.Namespace) -> None:
    print("\n## Tensors of a worker\n")
    print(
        "| precision | ZeRO stage | weights | gradients | optimizer | temporaries | activations "
        "| plan, at most | measured | of plan | between steps, plan | measured |"
    )
    print(f"|{' --- |' * 12}")
    for spec, measured in _runs("tensors", asked):
        planned = worker_memory(size, spec, sequence_length(asked.model), spec.zero_stage, WORKERS)
        between = planned.weights + planned.optimizer
        cells = (
            planned.weights,
            planned.gradients,
            planned.optimizer,
            planned.temporaries,
            planned.activations,
            planned.total,
            measured["peak"],
        )
        print(
            f"| {spec.precision} | {spec.zero_stage} | {' | '.join(map(_gib, cells))} "
            f"| {measured['peak'] / planned.total:.2f} "
            f"| {_gib(between)} | {_gib(measured['between'])} |",
            flush=True,
        )


def _print_workers(size: Any, asked: argparse.Namespace) -> None:
    print("\n## Workers under Ray\n")
    print(
        "| precision | ZeRO stage | libraries | tensors | plan, in steps | measured | of plan "
        "| plan, at a start | measured, whole life | of plan |"
    )
    print(f"|{' --- |' * 10}")
    for spec, measured in _runs("workers", asked):
        length = sequence_length(asked.model)
        planned = host_memory(size, spec, length, WORKERS, WORKERS)
        steps = planned.libraries + planned.training + planned.snapshot
        start = planned.libraries + planned.start
        whole = max(steps, start)
        print(
            f"| {spec.precision} | {spec.zero_stage} "
            f"| {' | '.join(_gib(n / WORKERS) for n in (planned.libraries, planned.training))} "
            f"| {_gib(steps / WORKERS)} | {_gib(measured['steps'])} "
            f"| {measured['steps'] * WORKERS / steps:.2f} "
            f"| {_gib(start / WORKERS)} | {_gib(measured['life'])} "
            f"| {measured['life'] * WORKERS / whole:.2f} |",
            flush=True,
        )


def _print_beside(_size: Any, asked: argparse.Namespace) -> None:
    print(f"\n## Workers beside a bare loop\n\nMiB, medians of {asked.rounds} runs\n")
    print(
        "| model | workers | bare | bare in a worker of Ray Train | perennial | of bare "
        "| of bare in Ray |"
    )
    print(f"|{' --- |' * 7}")
    for model, workers in BESIDE:
        bare, in_ray, ours = (
            statistics.median(
                run_arm(LOOPS, arm, model, workers, STEPS)["peak_bytes"]
                for _ in range(asked.rounds)
            )
            for arm in ("bare", "bare-ray", "perennial")
        )
        peaks = " | ".join(f"{peak / 2**20:,.0f}" for peak in (bare, in_ray, ours))
        print(
            f"| {model} | {workers} | {peaks} | {ours / bare:.2f} | {ours / in_ray:.2f} |",
            flush=True,
        )


def _runs(arm: str, asked: argparse.Namespace) -> Any:
    """Yield the section `training` of every run, with what it took."""
    settings = [
        {"precision": precision, "zero_stage": stage}
        for precision in asked.precisions
        for stage in asked.stages
    ]
    spec = training_spec(asked.model, WORKERS)
    # The processes of one arm can measure all settings; the other starts Ray for each.
    together = settings if arm == "tensors" else []
    found = run_arm(SCRIPT, arm, asked.model, json.dumps(together)) if together else []
    for number, each in enumerate(settings):
        alone = [] if together else run_arm(SCRIPT, arm, asked.model, json.dumps([each]))
        yield spec.model_copy(update=each), (found[number] if together else alone[0])


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


if __name__ == "__main__":
    main()
