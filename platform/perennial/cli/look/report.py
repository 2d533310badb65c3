"""`perennial report`: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perennial.cli.command import (
    AsJson,
    DryRun,
    Overrides,
    RunFile,
    check_output,
    open_run,
    print_preview,
)
from perennial.cli.console import out, print_json

Output = Annotated[
    Path | None, typer.Option("--output", help="A local file to write the page to as well")
]


def report(
    run_file: RunFile,
    overrides: Overrides = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Write one HTML page that needs no network: lineage, learning rate, losses, samples."""
    check_output(output)
    run = open_run(run_file, overrides)
    if dry_run:
        places = [f"{run.spec.store}/report/", *([str(output)] if output else [])]
        print_preview(run, [f"write the page to {place}" for place in places])
        return
    page = run.report(output)
    if as_json:
        print_json(page.to_dict())
        return
    size = f"{page.size_bytes / 1e6:.1f} MB"
    out.print(f"page      {page.place}   ({size}, opens without a network)")
    out.print(f"next      open it in a browser; the same pictures: perennial ui {run_file}")
