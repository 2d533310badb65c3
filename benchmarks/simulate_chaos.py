"""`perennial simulate` against a run that was really disturbed: its goodput, and the error.

    python benchmarks/simulate_chaos.py COSTS [CHAOS]

CHAOS is what tests/e2e/test_chaos.py wrote: how long a run took undisturbed and under kills, and
how many there were. The simulation is given the kills an hour, the steps and the interval of that
run, and the costs that `make bench-train` measured apart from it (COSTS); nothing is fitted.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

CHAOS = ROOT / "benchmarks" / "results" / "chaos.md"
WORKERS = 2
SEEDS = range(200)


@dataclass(frozen=True)
class Disturbed:
    """A run of three stages that was killed again and again."""

    steps: int
    interval_steps: int
    kills: int
    calm_seconds: float
    seconds: float

    @property
    def goodput(self) -> float:
        """Undisturbed time over time."""
        return self.calm_seconds / self.seconds

    @property
    def kills_per_hour(self) -> float:
        """Of one worker."""
        return self.kills / (WORKERS * self.seconds / 3600)


def read_chaos(text: str) -> Disturbed:
    """What the report of the chaos test says."""

    def number(pattern: str) -> float:
        found = re.search(pattern, text)
        if found is None:
            raise SystemExit(f"the chaos report does not say {pattern!r}")
        return float(found[1])

    return Disturbed(
        steps=3 * int(number(r"three stages of (\d+) steps")),
        interval_steps=int(number(r"a checkpoint every (\d+)")),
        kills=int(number(r"\n(\d+) kills \|")),
        calm_seconds=number(r"\nundisturbed \| (\d+)"),
        seconds=number(r"\n\d+ kills \| (\d+)"),
    )


def main() -> None:
    from perennial.config import load
    from perennial.planning.spot_fleet import Costs, CostsSpec, Fleet, simulate

    costs_file, chaos_file = Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else CHAOS
    costs, run = load(costs_file, CostsSpec), read_chaos(chaos_file.read_text("utf-8"))
    step_seconds = run.calm_seconds / run.steps
    told = simulate(
        # A killed worker, node or driver is replaced at once.
        Fleet(run.kills_per_hour, 0.0, 1e-3),
        Costs(costs.checkpoint_seconds, costs.restart_seconds),
        (WORKERS, WORKERS),
        run.interval_steps * step_seconds,
        run.seconds,
        SEEDS,
    )
    print(f"`{' '.join(['python', *sys.argv])}`\n")
    print(
        f"{run.kills} kills in {run.seconds:.0f} s ({run.kills_per_hour:.1f} an hour of each "
        f"worker), a checkpoint every {run.interval_steps} steps of {step_seconds:.2f} s; costs: "
        f"checkpoint {costs.checkpoint_seconds:g} s, restart {costs.restart_seconds:g} s "
        f"({costs.source}). {len(SEEDS)} simulated runs.\n"
    )
    print("goodput | measured | simulated (standard deviation) | error")
    print("--- | --- | --- | ---")
    print(
        f"kept work / time | {run.goodput:.3f} | {told.mean:.3f} ({told.spread:.3f}) | "
        f"{told.mean - run.goodput:+.3f}"
    )
    lost = (run.seconds - run.calm_seconds) / run.kills
    simulated = (1 - told.mean) * run.seconds / told.preemptions
    print(f"seconds a kill | {lost:.0f} | {simulated:.0f} | {simulated - lost:+.0f}")


if __name__ == "__main__":
    main()
