"""`perennial land`: put files into the inbox as one corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perennial.cli.command import AsJson, DryRun, RunFile, open_run, print_preview
from perennial.cli.console import out, print_json


def land(
    run_file: RunFile,
    name: Annotated[str, typer.Argument(help="Name of the corpus")],
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILES... [section.key=value ...]", help="Files, then overrides"),
    ],
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Upload files to the inbox as corpus NAME, marker last. Safe to repeat."""
    overrides = [word for word in files if "=" in word and not Path(word).exists()]
    paths = [word for word in files if word not in overrides]
    run = open_run(run_file, overrides)
    if dry_run:
        print_preview(run, run.plan_land(name, paths))
        return
    landed = run.land(name, paths)
    if as_json:
        print_json(landed.to_dict())
        return
    out.print(f"landed {name}: {len(landed.keys)} files in {landed.inbox}/{name}")
    out.print(f"next   perennial run {run_file}")
