"""`perennial hold`, `retry`, `refuse`, `retire` and `accept`: what a person decides of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.app import AsJson, DryRun, Overrides, RunFile, verb
from perennial.cli.console import Screen, out, print_json
from perennial.cli.opening import read_run, show_plan

if TYPE_CHECKING:
    from perennial.controller.decisions import Decision

Name = Annotated[str, typer.Argument(metavar="NAME", help="The corpus")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept in the ledger")]


@verb
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
    """Go on with a corpus that was held, failed or refused; train a gated one anew."""
    _decide("retry", run_file, name, overrides, "", as_json, dry_run, replay)


def _register(decision: Decision, sentence: str) -> None:
    """A verb that takes a corpus and a reason."""

    def command(
        run_file: RunFile,
        name: Name,
        overrides: Overrides = None,
        reason: Reason = "",
        as_json: AsJson = False,
        dry_run: DryRun = False,
    ) -> None:
        _decide(decision, run_file, name, overrides, reason, as_json, dry_run)

    command.__name__, command.__doc__ = decision, sentence
    verb(command)


_register("hold", "Let a corpus wait; the others go on. `retry` lets it go on.")
_register("refuse", "Leave a corpus out; a stage that a gate stopped leaves the trunk with it.")
_register("retire", "Replay a trained corpus no more; it stays in the lineage.")
_register("accept", "Take a stage over that a gate stopped; the next one starts from its end.")


def _decide(
    decision: Decision,
    run_file: Path,
    name: str,
    overrides: list[str] | None,
    reason: str,
    as_json: bool,
    dry_run: bool,
    replay: float | None = None,
) -> None:
    from perennial.controller import decisions
    from perennial.controller.context import Workspace

    work = Workspace(read_run(run_file, overrides), str(run_file), [Screen()])
    decisions.check(work, decision, name, replay)
    if dry_run:
        show_plan(work.spec, [f"{decision} {name}"])
        return
    corpus = decisions.decide(work, decision, name, reason, replay)
    if as_json:
        print_json({"corpus": name, "state": corpus.state, "story": corpus.event_kinds})
        return
    out.print(f"{name} is {corpus.state} now")
    out.print(f"next      perennial run {run_file}")
