"""`perennial rewind`: take the trunk back to one of its checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from perennial.cli.command import (
    AsJson,
    DryRun,
    Overrides,
    RunFile,
    TakeOver,
    open_run,
    print_preview,
)
from perennial.cli.console import out, print_json
from perennial.cli.decide.corpus import Reason

Place = Annotated[
    str,
    typer.Argument(metavar="STAGE[@STEP]", help="The trunk's checkpoint; the stage's end without"),
]


def rewind(
    run_file: RunFile,
    place: Place,
    overrides: Overrides = None,
    reason: Reason = "",
    as_json: AsJson = False,
    dry_run: DryRun = False,
    take_over: TakeOver = False,
) -> None:
    """Take the trunk back to a checkpoint; later stages leave it, their corpora are held."""
    run = open_run(run_file, overrides)
    if dry_run:
        planned = run.plan_rewind(place)
        print_preview(run, [f"{name} leaves the trunk" for name in planned.left])
        return
    done = run.rewind(place, reason, take_over=take_over)
    if as_json:
        print_json(done.to_dict())
        return
    out.print(f"the trunk stands at {done.stage}@{done.step}")
    for name in done.left:
        out.print(f"left      {name}, which stays readable")
    if done.goes_on:
        out.print(f"next      perennial run {run_file}   {' and '.join(done.goes_on)} go on there")
    for name in done.held:
        out.print(f"held      perennial retry {run_file} {name}   train it again, or refuse it")
