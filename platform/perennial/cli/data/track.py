"""`perennial track`: bring MLflow up to what the store knows."""

from __future__ import annotations

import typer

from perennial.cli.command import AsJson, DryRun, Overrides, RunFile, open_run, print_preview
from perennial.cli.console import out, print_json


def track(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Log the whole run again, to an MLflow that missed a part or lost it. Safe to repeat."""
    run = open_run(run_file, overrides)
    if dry_run:
        status = run.read_status()
        named = [stage.name for stage in status.stages] + list(status.releases)
        print_preview(run, [f"log {name}" for name in named])
        return
    tracked = run.track()
    receipt = tracked.receipt
    if as_json:
        print_json(tracked.to_dict())
    else:
        stages = ", ".join(tracked.stages) or "-"
        out.print(f"{tracked.places} has {len(tracked.stages)} stages: {stages}", markup=False)
        out.print(
            f"delivered {receipt.values:,} values and {receipt.files:,} files to "
            f"{receipt.runs:,} runs; what was there already is not counted"
        )
        for words in receipt.missing:
            out.print(f"missing   {words}", markup=False)
        if not receipt.missing:
            out.print(f"next      perennial {'ui' if tracked.uri else 'status'} {run_file}")
    if receipt.missing:
        raise typer.Exit(1)
