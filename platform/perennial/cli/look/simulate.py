"""`perennial simulate`: goodput of a run on preemptible machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from perennial.cli.command import AsJson, Overrides, RunFile, open_run
from perennial.cli.console import out, print_json

if TYPE_CHECKING:
    from perennial.planning.fleet_forecast import FleetForecast
    from perennial.planning.spot_fleet import Goodput


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
        typer.Option("--measured", min=0, max=1, help="Goodput of a real run, for the error"),
    ] = None,
) -> None:
    """Find the goodput on preemptible machines, and the best checkpoint interval and workers."""
    from perennial.planning.spot_fleet import Fleet

    fleet = Fleet(preemptions, notice, replacement)
    forecast = open_run(run_file, overrides).simulate(costs, fleet, hours=hours, seeds=seeds)
    if as_json:
        print_json(forecast.to_dict(measured))
        return
    _print_fleet(forecast)
    _print_table(forecast)
    _print_best(forecast)
    if measured is not None:
        error = forecast.current.goodput.mean - measured
        out.print(f"measured    {measured:.1%}; the simulation is off by {error:+.1%}")


def _print_fleet(forecast: FleetForecast) -> None:
    fleet, costs = forecast.fleet, forecast.costs
    out.print(
        f"fleet       {forecast.max_workers} workers, each preempted "
        f"{fleet.preemptions_per_hour:g} times an hour with {fleet.notice_seconds:g} s of notice, "
        f"replaced after {fleet.replacement_seconds:g} s"
    )
    out.print(
        f"costs       step {costs.step_seconds:g} s, checkpoint {costs.checkpoint_seconds:g} s, "
        f"restart {costs.restart_seconds:g} s ({costs.source})"
    )


def _print_table(forecast: FleetForecast) -> None:
    current, tried = forecast.current, forecast.tried
    most, step = forecast.max_workers, forecast.costs.step_seconds
    table = Table(
        title="goodput: kept work over that of a full group that nothing stops; steps a checkpoint"
    )
    table.title_justify = "left"
    shares = ("goodput", "lost", "restart", "wait", "save", "missing")
    for column in ("workers", "steps", *shares):
        table.add_column(column, justify="left" if column == "workers" else "right")
    row = (_range(current.min_workers, most), f"{current.checkpoint_every:,}")
    table.add_row(*row, *_shares(current.goodput), style="bold")
    table.add_section()
    middle = sorted(tried.by_interval)[len(tried.by_interval) // 2]
    for fewest, goodput in tried.by_fewest.items():
        table.add_row(_range(fewest, most), f"{middle / step:,.0f}", *_shares(goodput))
    table.add_section()
    for interval, goodput in tried.by_interval.items():
        row = (_range(tried.best_fewest, most), f"{interval / step:,.0f}")
        best = interval == tried.best_interval
        table.add_row(*row, *_shares(goodput), style="green" if best else "")
    out.print(table)


def _print_best(forecast: FleetForecast) -> None:
    best = forecast.best
    if best is forecast.current:
        out.print("best        the file as it is: nothing that was tried gives more")
        return
    out.print(
        f"best        training.workers={{min: {best.min_workers}, max: {forecast.max_workers}}} "
        f"'training.checkpoint_every={best.checkpoint_every} steps': {best.goodput.mean:.1%}, "
        f"instead of {forecast.current.goodput.mean:.1%} as the file has it"
    )


def _range(fewest: int, most: int) -> str:
    return f"{most}" if fewest == most else f"{fewest} to {most}"


def _shares(goodput: Goodput) -> list[str]:
    stopped = (goodput.restarting, goodput.waiting, goodput.checkpointing)
    parts = (goodput.lost, *stopped, goodput.missing)
    return [f"{goodput.mean:.1%} ± {goodput.spread:.1%}", *(f"{part:.1%}" for part in parts)]
