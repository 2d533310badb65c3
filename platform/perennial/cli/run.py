"""`perennial run` and `perennial watch`: train every corpus that has landed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.app import AsJson, DryRun, Overrides, RunFile, verb
from perennial.cli.console import log, out, print_gate, print_json, print_matrix, print_tokens
from perennial.cli.opening import show_plan, workspace

if TYPE_CHECKING:
    from perennial.controller.context import Workspace

Reschedule = Annotated[
    bool,
    typer.Option("--reschedule", help="Go on under a schedule that is not the trunk's so far"),
]


@verb
def run(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    reschedule: Reschedule = False,
) -> None:
    """Train and evaluate every stage that is not done yet, in order. Safe to repeat and kill."""
    from perennial.controller.loop import advance, check_inbox, todo
    from perennial.errors import InputError

    with workspace(run_file, overrides) as work:
        check_inbox(work)
        if dry_run:
            show_plan(work.spec, todo(work))
            return
        trained = advance(work, reschedule=reschedule)
        state = work.state
        if not state.corpora:
            raise InputError(
                work.inbox.url,
                "",
                "no complete corpus has landed",
                f"land one: `perennial land {run_file} NAME FILES...`",
            )
        if all(corpus.state == "refused" for corpus in state.corpora.values()):
            last = list(state.corpora.values())[-1]
            raise InputError(
                f"{work.inbox.url}/{last.name}",
                "",
                f"every corpus was refused, this one because: {last.reason}",
                f"land another, or `perennial retry {run_file} {last.name}` when that is mended",
            )
        _tell(work, str(run_file), trained, as_json)


@verb
def watch(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    reschedule: Reschedule = False,
    once: Annotated[bool, typer.Option("--once", help="Look once, then end")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, help="Seconds between two looks")
    ] = 60.0,
    webhook: Annotated[
        int | None,
        typer.Option(
            "--webhook",
            min=1,
            max=65535,
            metavar="PORT",
            help="Look at once whenever an S3 event is posted to this port",
        ),
    ] = None,
) -> None:
    """Pull the sources that are due and poll the inbox: each corpus that lands becomes a stage."""
    from perennial.controller import loop
    from perennial.controller.source_poller import Puller, open_sources, pull_due, utc_now
    from perennial.controller.webhook import Wakeup

    with workspace(run_file, overrides) as work:
        if dry_run or once:
            loop.check_inbox(work)
        if dry_run:
            show_plan(work.spec, loop.todo(work))
            return
        if once:
            pull_due(work, open_sources(work), utc_now())
            _tell(work, str(run_file), loop.advance(work, reschedule=reschedule), as_json)
            return

        def report(look: loop.Look) -> None:
            if look.failure is not None:
                log.print(f"perennial: {look.failure}", soft_wrap=True, markup=False)
            elif look.trained:
                _tell(work, str(run_file), look.trained, as_json, end=False)
            log.print(f"watching {work.inbox.url}, next look in {interval:g} s", soft_wrap=True)

        Puller(work, interval).start()
        with Wakeup(webhook, work.log) as wakeup:
            loop.watch(work, lambda: wakeup.wait(interval), report, reschedule=reschedule)


def _tell(work: Workspace, run_file: str, trained: int, as_json: bool, *, end: bool = True) -> None:
    """What was done, and what a person can do; a gated stage ends the command with code 1."""
    from perennial.controller.decisions import choices
    from perennial.runs import summary

    length = work.spec.corpora.sequence_length
    told = summary.matrix(work.state)
    gated = choices(work.state, run_file)
    if as_json:
        sources = summary.tokens_by_source(work.state, length)
        document = {"trained": trained, "matrix": told.to_dict(), "tokens": sources}
        print_json(document | {"gated": summary.gated(work.state)})
    else:
        if not trained and not gated:
            out.print("nothing to do: every corpus that landed is trained")
        if told.stages:
            print_matrix(told)
            print_tokens(summary.tokens_by_source(work.state, length))
        out.print(f"store     {work.store.url}")
        out.print(f"pictures  {work.store.url}/report/")
        if gated:
            print_gate(summary.gated(work.state), gated)
        else:
            _next(run_file)
    if gated and end:
        raise typer.Exit(1)


def _next(run_file: str) -> None:
    out.print(f"next      perennial land {run_file} NAME FILES...   another corpus")
    out.print(f"          perennial release {run_file}               anneal and export the trunk")
    out.print(f"          perennial ui {run_file}                    curves in MLflow")
