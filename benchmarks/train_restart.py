"""Seconds that a stage loses to a killed worker, and that a checkpoint stalls training.

`kill`: SIGKILL to a worker, from the kill to the end of the first step that was not done before.
`2 -> 1`: a node with one of two workers is gone; `1 -> 2`: a node joins; both from the last step of
the old worker group to the first new step of the new one.
The floor is the same kill of a Ray Train loop that has nothing to load and nothing to do. What is
above the floor is loading: `model load` is the time in which as many plain processes import what a
worker needs, read the checkpoint, each its part, and build the engine.

`checkpoint`: seconds that training waits for a checkpoint, and by which the step beside which it is
written and stored is longer than the others, beside a synchronous save of the same state (weights
and both moments) with torch to the same disk. Medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arms import run_arm

MODELS = ("small", "20M")
SCRIPT = Path(__file__).parent / "train_restart_arms.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    asked = parser.parse_args()
    libraries = ("torch", "deepspeed", "ray")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    print(f"`{' '.join(['python', *sys.argv])}`  ")
    print(f"{versions}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the start;")
    print(f"medians of {asked.rounds} rounds\n")
    for model in asked.models:
        arms = ("floor", "kill", "shrink", "grow", "load", "checkpoint")
        runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        for _ in range(asked.rounds):
            for arm in arms:
                runs[arm].append(run_arm(SCRIPT, arm, model))
        _print_restarts(model, runs)
        _print_checkpoint(model, runs["checkpoint"])


def _median(runs: list[dict[str, Any]], what: str) -> float:
    return statistics.median(run[what] for run in runs)


def _print_restarts(model: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    floor, load = _median(runs["floor"], "seconds"), _median(runs["load"], "seconds")
    print("| model | what happens | to the next new step, s | lowest-highest | floor, s | ", end="")
    print("model load, s | above both, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for arm, what in (("kill", "kill -9 of a worker"), ("shrink", "2 -> 1"), ("grow", "1 -> 2")):
        took = _median(runs[arm], "seconds")
        found = sorted(run["seconds"] for run in runs[arm])
        print(
            f"| {model} | {what} | {took:.1f} | {found[0]:.1f}-{found[-1]:.1f} | {floor:.1f} | "
            f"{load:.1f} | {took - floor - load:+.1f} |"
        )
    print()


def _print_checkpoint(model: str, runs: list[dict[str, Any]]) -> None:
    stall, sync = _median(runs, "stall"), _median(runs, "synchronous")
    print("| model | stall of a checkpoint, s | synchronous save, s | of it | a step, s | ", end="")
    print("the step beside it is longer by, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {model} | {stall:.4f} | {sync:.3f} | {stall / sync:.1%} | "
        f"{_median(runs, 'step'):.3f} | {_median(runs, 'slower'):.3f} |\n",
        flush=True,
    )


if __name__ == "__main__":
    main()
