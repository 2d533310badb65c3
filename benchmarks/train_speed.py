"""Steps of the training loop beside the same engine without a loop, and beside `Trainer`.

Every arm trains the same model on the same tokens with the same ZeRO stage, micro batch,
accumulation and one thread a worker. `bare` is DeepSpeed in plain processes with its tokens in
memory; `bare-kept` is `bare` with the one thing that `perennial` sets of the C library, to keep the
memory that a step frees; `trainer` is Hugging Face's Trainer with DeepSpeed and its tokens in
memory; `perennial` is a job on Ray that reads its corpus from a store, watches its loss and tells
its steps. So `perennial` of `bare` is what a person gets, and of `bare-kept` what a platform costs.
Every run is a set of processes of its own; the first steps warm up and are not counted; a run's
speed is that of its median step. Arms are interleaved over `--rounds`, and ratios are medians of
the rounds'.

Memory is the highest resident size of a worker, of which a few hundred megabytes are libraries.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arms import run_arm

SCRIPT = Path(__file__).parent / "train_speed_arms.py"
ARMS = ("bare", "bare-kept", "trainer", "perennial")
MODELS = ("small", "20M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="counted steps of a run; default 12 and 8")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    asked = parser.parse_args()
    _print_head(asked)
    for model in asked.models:
        steps = asked.steps or {"small": 12, "20M": 8}[model]
        for workers in asked.workers:
            runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for turn in range(asked.rounds):
                # Nobody is always the first one after a pause.
                for arm in (*asked.arms[turn % len(asked.arms) :], *asked.arms)[: len(asked.arms)]:
                    runs[arm].append(run_arm(SCRIPT, arm, model, workers, steps))
            for arm in asked.arms:
                _print(arm, model, workers, runs)


def _print_head(asked: argparse.Namespace) -> None:
    libraries = ("torch", "deepspeed", "ray", "transformers", "accelerate")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    print(f"`{' '.join(['python', *sys.argv])}`  ")
    print(
        f"{versions}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the start; ", end=""
    )
    print(f"medians of {asked.rounds} rounds\n")
    print(
        "| model | workers | arm | tokens/s | lowest-highest | of bare | of bare-kept | "
        "of Trainer | waiting for data | peak MB a worker | of bare |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)


def _print(arm: str, model: str, workers: int, runs: dict[str, list[dict[str, Any]]]) -> None:
    speeds = [run["tokens_per_second"] for run in runs[arm]]
    memory = statistics.median(run["peak_bytes"] for run in runs[arm]) / 1e6
    waited = [run["data_share"] for run in runs[arm] if run["data_share"] is not None]
    cells = [
        model,
        str(workers),
        arm,
        f"{statistics.median(speeds):,.0f}",
        f"{min(speeds):,.0f}-{max(speeds):,.0f}",
        _ratio(runs, arm, "bare", "tokens_per_second"),
        _ratio(runs, arm, "bare-kept", "tokens_per_second"),
        _ratio(runs, arm, "trainer", "tokens_per_second"),
        f"{statistics.median(waited):.2%}" if waited else "-",
        f"{memory:,.0f}",
        _ratio(runs, arm, "bare", "peak_bytes"),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def _ratio(runs: dict[str, list[dict[str, Any]]], arm: str, peer: str, what: str) -> str:
    """The median over the rounds of arm / peer."""
    if arm == peer or peer not in runs:
        return "-"
    pairs = zip(runs[arm], runs[peer], strict=True)
    return f"{statistics.median(ours[what] / theirs[what] for ours, theirs in pairs):.3f}"


if __name__ == "__main__":
    main()
