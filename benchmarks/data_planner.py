"""Cost of planning a step, and of a seek, with ever more corpora in the mix.

A last stage replays every earlier corpus at 25%, with budgets that differ; blocks of 64 steps of
1,024 sequences. "Dealt" counts corpora that a batch holds on average. Medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "platform"))

from perennial.mixture import ReplayRule, Source, StageMix, stage_mix
from perennial.mixture.batches import Batches

BATCH = 1024
STEPS = 100_000
BLOCK = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    print(f"`python {' '.join(sys.argv)}`\n")
    print(
        f"numpy {version('numpy')}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}; ", end=""
    )
    print(f"medians of {asked.rounds}.\n")
    print("corpora | dealt | plan a step, us | seek, ms | decide the stage, ms")
    print("--- | --- | --- | --- | ---")
    for corpora in asked.corpora:
        history = _history(corpora - 1)
        began = time.perf_counter()
        mix = stage_mix(history, {"new": STEPS * BATCH}, STEPS, BATCH, ReplayRule(share=0.25))
        decide = time.perf_counter() - began
        seek = _median(lambda m=mix: Batches(m, STEPS // 2), asked.rounds)
        batches = Batches(mix, STEPS // 2)
        step = _median(lambda b=batches: b.take(BLOCK), asked.rounds * 5) / BLOCK
        dealt = len({int(source) for source in batches.take(1)[0][0]})
        print(f"{corpora:,} | {dealt} | {step * 1e6:.1f} | {seek * 1e3:.1f} | {decide * 1e3:.1f}")


def _history(corpora: int) -> list[StageMix]:
    """Stages without replay, so that making them costs nothing."""
    return [
        StageMix(f"c{index}", 1 + index % 97, BATCH, (_source(f"c{index}", 1 + index % 97),))
        for index in range(corpora)
    ]


def _source(corpus: str, steps: int) -> Source:
    return Source(corpus, steps * BATCH, 0, steps * BATCH)


def _median(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
