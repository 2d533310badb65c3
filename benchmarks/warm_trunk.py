"""Seconds that a trunk does not train between its stages: workers that start anew, and that wait.

One `watch` an arm. A first corpus becomes the first stage; then one lands while the trunk is idle
(`landed to first step`), and the others land at once, so that a stage follows each other one
(`end of a stage to the next one's first step`, by what it consists of; a stage that is measured
while the next one trains has no part in it). `goodput` is the share of the time of those stages,
from the first step of the first to the end of the last, that their steps take where nothing runs
beside them, as in the first stage of the run; `without evaluation` leaves the evaluations between
stages out of the time. Medians over stages.
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

SCRIPT = Path(__file__).parent / "warm_trunk_arms.py"
ARMS = {"cold": ("0", "false"), "warm": ("30", "false"), "warm, measured beside": ("30", "true")}
"""`training.idle_minutes` and `evaluation.beside_training`"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", type=int, default=10, help="stages that follow each other")
    parser.add_argument("--seconds", type=float, default=60, help="of a stage's steps, about")
    asked = parser.parse_args()
    libraries = ("torch", "deepspeed", "ray")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    print(f"`{' '.join(['python', *sys.argv])}`  ")
    print(f"{versions}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the start;")
    print("two workers, a model of 1.8M parameters\n")
    step = run_arm(SCRIPT, *ARMS["cold"], 0, 20)["step"]
    steps = max(4, round(asked.seconds / step))
    runs = {arm: run_arm(SCRIPT, *words, asked.stages, steps) for arm, words in ARMS.items()}
    print(f"{asked.stages} stages of {steps} steps\n")
    print(
        "| workers | landed to first step, s | end of a stage to the next first step, s | ", end=""
    )
    print("evaluation | ingest | start | goodput | without evaluation |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for arm, run in runs.items():
        parts = [_median(run, part) for part in ("between", "evaluation", "ingest", "start")]
        listed = " | ".join(f"{seconds:.1f}" for seconds in parts)
        shares = f"{run['goodput']:.0%} | {run['goodput_without_evaluation']:.0%}"
        print(f"| {arm} | {run['landed']:.1f} | {listed} | {shares} |")
    ratio = _median(runs["cold"], "start") / _median(runs["warm"], "start")
    print(f"\nA stage starts {ratio:.1f} times as fast in workers that wait.")


def _median(run: dict[str, Any], part: str) -> float:
    return statistics.median(run[part])


if __name__ == "__main__":
    main()
