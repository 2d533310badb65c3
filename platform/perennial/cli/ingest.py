"""`perennial ingest`: pull the sources that are due, tokenise what landed, train nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from perennial.cli.app import AsJson, DryRun, Overrides, RunFile, verb
from perennial.cli.console import out, print_json, print_sources
from perennial.cli.opening import show_plan, workspace


@verb
def ingest(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    due: Annotated[
        bool, typer.Option("--due", help="First pull the sources that are due, for a cron")
    ] = False,
) -> None:
    """Tokenise what landed without training it. Safe to repeat and kill."""
    from perennial.controller.loop import ingest_landed, todo, unfinished
    from perennial.controller.source_poller import open_sources, pull_due, utc_now
    from perennial.errors import InputError

    with workspace(run_file, overrides) as work:
        if due and not work.spec.sources:
            raise InputError(
                str(run_file), "sources", "there is none to pull", "name one, or leave out --due"
            )
        sources = open_sources(work)
        if dry_run:
            now = utc_now()
            told = [source.status(now) for source in sources] if due else []
            pulls = [f"pull {status.name} at {status.next_due}" for status in told]
            show_plan(work.spec, [*pulls, *todo(work)])
            return
        landed = pull_due(work, sources, utc_now()) if due else []
        # The controller that trains tokenises what landed when it gets there.
        busy = unfinished(work) if due else None
        if busy is None:
            ingest_landed(work)
        corpora = {name: corpus.state for name, corpus in work.state.corpora.items()}
        statuses = [source.status(utc_now()) for source in sources]
        if as_json:
            told_sources = [asdict(status) for status in statuses]
            print_json({"landed": landed, "corpora": corpora, "sources": told_sources})
            return
        print_sources(statuses)
        for name, state in corpora.items():
            out.print(f"corpus    {name}: {state}")
        if busy is not None:
            out.print(f"next      the stage of {busy} is unfinished: perennial run {run_file}")
        else:
            out.print(f"next      perennial run {run_file}")
