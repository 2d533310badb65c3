"""`perennial ingest`: pull the sources that are due, tokenise what landed, train nothing."""

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
from perennial.cli.console import out, print_json, print_sources


def ingest(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    due: Annotated[
        bool, typer.Option("--due", help="First pull the sources that are due, for a cron")
    ] = False,
    take_over: TakeOver = False,
) -> None:
    """Tokenise everything that landed, also while a stage trains. Safe to repeat and kill.

    Exit code 1: a corpus was refused in this call; the others were tokenised.
    """
    run = open_run(run_file, overrides)
    if dry_run:
        print_preview(run, run.plan_ingest(due=due))
        return
    ingested = run.ingest(due=due, take_over=take_over)
    if as_json:
        print_json(ingested.to_dict())
    else:
        print_sources(ingested.sources)
        for name, state in ingested.corpora.items():
            # What was refused in this call was said already.
            reason = "" if name in ingested.refused else ingested.reasons.get(name)
            words = f"corpus    {name}: {state}" + (f" ({reason})" if reason else "")
            out.print(words, markup=False, soft_wrap=True)
        out.print(f"next      perennial run {run_file}")
    if ingested.refused:
        raise typer.Exit(1)
