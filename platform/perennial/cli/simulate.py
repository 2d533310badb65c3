"""`perennial simulate`: goodput of a run on machines that are taken away."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.table import Table

from perennial.cli.app import AsJson, Overrides, RunFile, verb
from perennial.cli.console import out, print_json
from perennial.cli.opening import read_run

if TYPE_CHECKING:
    from perennial.planning.spot_fleet import CostsSpec, Fleet, Goodput, Search


class _Choice(NamedTuple):
    fewest: int
    every: int
    goodput: Goodput


@verb
def simulate(
    run_file: RunFile,
    costs: Annotated[
        Path, typer.Option("--costs", help="Costs file, such as benchmarks/costs/quickstart.yaml")
    ],
    preemptions: Annotated[
        float, typer.Option("--preemptions-per-hour", min=0, help="Of one machine")
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
    notice: Annotated[
        float, typer.Option("--notice-seconds", min=0, help="From the warning to the end")
    ] = 0.0,
    replacement: Annotated[
        float, typer.Option("--replacement-seconds", min=0, help="Until another machine is there")
    ] = 600.0,
    hours: Annotated[float, typer.Option("--hours", min=0.01, help="Wall clock of a run")] = 24.0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many runs")] = 20,
    measured: Annotated[
        float | None,
        typer.Option("--measured", min=0, max=1, help="Goodput of a real run; tells the error"),
    ] = None,
) -> None:
    """Goodput on a spot fleet, the best checkpoint interval and the best worker range."""
    from perennial.config import load
    from perennial.planning import spot_fleet as simulation
    from perennial.planning.spot_fleet import CostsSpec

    spec = read_run(run_file, overrides)
    known = load(costs, CostsSpec)
    fleet = simulation.Fleet(preemptions, notice, replacement)
    cost = simulation.Costs(known.checkpoint_seconds, known.restart_seconds)
    workers = (spec.training.workers.min, spec.training.workers.max)
    every = max(1, spec.training.checkpoint_every.steps(0, spec.tokens_per_step))
    horizon, draws = hours * 3600, range(seeds)
    now = simulation.simulate(fleet, cost, workers, every * known.step_seconds, horizon, draws)
    found = simulation.search(fleet, cost, workers[1], known.step_seconds, horizon, draws)
    best = _best(workers[0], every, now, found, known.step_seconds)
    if as_json:
        print_json(
            {
                "source": known.source,
                "fleet": asdict(fleet),
                "workers": {"min": workers[0], "max": workers[1]},
                "checkpoint_every_steps": every,
                "goodput": asdict(now),
                "error": None if measured is None else now.mean - measured,
                "best": {
                    "workers": {"min": best.fewest, "max": workers[1]},
                    "checkpoint_every_steps": best.every,
                    "goodput": asdict(best.goodput),
                },
            }
        )
        return
    _print(fleet, known, workers, every, now, found)
    _print_best(best, workers[1], now)
    if measured is not None:
        error = now.mean - measured
        out.print(f"measured    {measured:.1%}; the simulation is off by {error:+.1%}")


def _print(
    fleet: Fleet,
    known: CostsSpec,
    workers: tuple[int, int],
    every: int,
    now: Goodput,
    found: Search,
) -> None:
    most, step = workers[1], known.step_seconds
    out.print(
        f"fleet       {most} workers, each preempted {fleet.preemptions_per_hour:g} times an hour "
        f"with {fleet.notice_seconds:g} s of notice, replaced after {fleet.replacement_seconds:g} s"
    )
    out.print(
        f"costs       step {step:g} s, checkpoint {known.checkpoint_seconds:g} s, restart "
        f"{known.restart_seconds:g} s ({known.source})"
    )
    table = Table(title="goodput: kept work over that of a full group that nothing stops")
    table.title_justify = "left"
    for column in ("workers", "checkpoint", "goodput", "lost", "restarts", "waiting", "saving"):
        table.add_column(column, justify="left" if column == "workers" else "right")
    table.add_row(_range(workers[0], most), f"{every:,} steps", *_shares(now), style="bold")
    table.add_section()
    middle = sorted(found.by_interval)[len(found.by_interval) // 2]
    for fewest, told in found.by_fewest.items():
        table.add_row(_range(fewest, most), f"{middle / step:,.0f} steps", *_shares(told))
    table.add_section()
    for interval, told in found.by_interval.items():
        row = (_range(found.best_fewest, most), f"{interval / step:,.0f} steps", *_shares(told))
        table.add_row(*row, style="green" if interval == found.best_interval else "")
    out.print(table)


def _best(fewest: int, every: int, now: Goodput, found: Search, step_seconds: float) -> _Choice:
    """The file as it is, unless something that was tried gives more."""
    tried = found.by_interval[found.best_interval]
    if now.mean >= tried.mean:
        return _Choice(fewest, every, now)
    return _Choice(found.best_fewest, round(found.best_interval / step_seconds), tried)


def _print_best(best: _Choice, most: int, now: Goodput) -> None:
    if best.goodput is now:
        out.print("best        the file as it is: nothing that was tried gives more")
        return
    out.print(
        f"best        training.workers={{min: {best.fewest}, max: {most}}} "
        f"'training.checkpoint_every={best.every} steps': {best.goodput.mean:.1%}, "
        f"instead of {now.mean:.1%} as the file has it"
    )


def _range(fewest: int, most: int) -> str:
    return f"{most}" if fewest == most else f"{fewest} to {most}"


def _shares(told: Goodput) -> list[str]:
    parts = (told.lost, told.restarting, told.waiting, told.checkpointing)
    return [f"{told.mean:.1%} ± {told.spread:.1%}", *(f"{part:.1%}" for part in parts)]
