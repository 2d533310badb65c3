"""`perennial land`: put files into the inbox as one corpus."""

from __future__ import annotations

from typing import Annotated

import typer

from perennial.cli.command import AsJson, DryRun, RunFile, open_run, print_preview
from perennial.cli.console import out, print_json

_SHOWN = 10


def land(
    run_file: RunFile,
    name: Annotated[str, typer.Argument(help="Name of the corpus")],
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES... [section.key=value ...]",
            help="Files, folders, globs, s3:// or gs:// prefixes, hf://datasets/OWNER/NAME, then "
            "overrides",
        ),
    ],
    split: Annotated[
        list[str],
        typer.Option(
            metavar="SPLIT",
            help="Split to take of files that have splits: train (the default), validation, test "
            "or all; may be repeated",
        ),
    ] = [],  # noqa: B006 (typer reads it)
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Copy files to the inbox as corpus NAME, marker last. Safe to repeat."""
    from perennial.sources.places import is_place

    overrides = [word for word in files if "=" in word and not is_place(word)]
    places = [word for word in files if word not in overrides]
    run = open_run(run_file, overrides)
    if dry_run:
        print_preview(run, run.plan_land(name, places, splits=split))
        return
    landed = run.land(name, places, splits=split)
    if as_json:
        print_json(landed.to_dict())
        return
    out.print(f"landed {name}: {len(landed.keys)} files in {landed.inbox}/{name}")
    for left_out, reason in list(landed.left_out.items())[:_SHOWN]:
        out.print(f"left out {left_out}: {reason}")
    if len(landed.left_out) > _SHOWN:
        out.print(f"left out {len(landed.left_out) - _SHOWN:,} more files: --json names them")
    out.print(f"next   perennial run {run_file}")
