"""`perennial hold`, `retry`, `refuse`, `retire`, `unretire`, `accept`: a user's decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.command import AsJson, DryRun, Overrides, RunFile, open_run, print_preview
from perennial.cli.console import out, print_json

if TYPE_CHECKING:
    from perennial.runs.state import Corpus

Name = Annotated[str, typer.Argument(metavar="NAME", help="The corpus")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept in the ledger")]


def hold(
    run_file: RunFile,
    name: Name,
    overrides: Overrides = None,
    reason: Reason = "",
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Let a corpus wait; the others go on. `retry` lets it go on."""
    run = open_run(run_file, overrides)
    if dry_run:
        print_preview(run, run.plan_decision("hold", name))
    else:
        _print_corpus(run.hold(name, reason), run_file, as_json)


def retry(
    run_file: RunFile,
    name: Name,
    overrides: Overrides = None,
    replay: Annotated[
        float | None,
        typer.Option("--replay", min=0.0, max=1.0, help="Share of replay of its next stage"),
    ] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Go on with a corpus that was held, failed or refused; train a gated one again."""
    run = open_run(run_file, overrides)
    if dry_run:
        print_preview(run, run.plan_decision("retry", name, replay=replay))
    else:
        _print_corpus(run.retry(name, replay=replay), run_file, as_json)


def accept(
    run_file: RunFile,
    name: Name,
    overrides: Overrides = None,
    reason: Reason = "",
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Accept a stage that a gate stopped, or one that waits to begin for approval."""
    run = open_run(run_file, overrides)
    if dry_run:
        print_preview(run, run.plan_decision("accept", name))
    else:
        _print_corpus(run.accept(name, reason), run_file, as_json)


def refuse(
    run_file: RunFile,
    name: Name,
    overrides: Overrides = None,
    reason: Reason = "",
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Leave a corpus out; a stage that a gate stopped leaves the trunk with it."""
    run = open_run(run_file, overrides)
    if dry_run:
        print_preview(run, run.plan_decision("refuse", name))
    else:
        _print_corpus(run.refuse(name, reason), run_file, as_json)


def retire(
    run_file: RunFile,
    name: Name,
    overrides: Overrides = None,
    reason: Reason = "",
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Replay a trained corpus no more; it stays in the lineage."""
    run = open_run(run_file, overrides)
    if dry_run:
        print_preview(run, run.plan_decision("retire", name))
    else:
        _print_corpus(run.retire(name, reason), run_file, as_json)


def unretire(
    run_file: RunFile,
    name: Name,
    overrides: Overrides = None,
    reason: Reason = "",
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Replay a retired corpus again, from the next stage on."""
    run = open_run(run_file, overrides)
    if dry_run:
        print_preview(run, run.plan_decision("unretire", name))
    else:
        _print_corpus(run.unretire(name, reason), run_file, as_json)


def _print_corpus(corpus: Corpus, run_file: str, as_json: bool) -> None:
    if as_json:
        print_json({"corpus": corpus.name, "state": corpus.state, "story": corpus.event_kinds})
        return
    out.print(f"{corpus.name} is {corpus.state} now")
    out.print(f"next      perennial run {run_file}")
