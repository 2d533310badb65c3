"""`perennial hold`, `retry`, `refuse`, `retire`, `unretire`, `accept`: a user's decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.command import AsJson, DryRun, Overrides, RunFile, open_run, print_preview
from perennial.cli.console import out, print_json

if TYPE_CHECKING:
    from perennial.controller.decisions import Decision
    from perennial.runs.state import Corpus

Name = Annotated[str, typer.Argument(metavar="NAME", help="The corpus")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept in the ledger")]


def _decision(verb: Decision, about: str) -> Callable[..., None]:
    """Return a verb that takes a decision about a corpus, with a reason."""

    def decide(
        run_file: RunFile,
        name: Name,
        overrides: Overrides = None,
        reason: Reason = "",
        as_json: AsJson = False,
        dry_run: DryRun = False,
    ) -> None:
        run = open_run(run_file, overrides)
        if dry_run:
            print_preview(run, run.plan_decision(verb, name))
        else:
            _print_corpus(getattr(run, verb)(name, reason), run_file, as_json)

    decide.__name__, decide.__doc__ = verb, about
    return decide


hold = _decision("hold", "Let a corpus wait; the others go on. `retry` lets it go on.")
accept = _decision(
    "accept", "Accept a stage that a gate stopped, or one that waits to begin for approval."
)
refuse = _decision(
    "refuse", "Leave a corpus out; a stage that a gate stopped leaves the trunk with it."
)
retire = _decision("retire", "Replay a trained corpus no more; it stays in the lineage.")
unretire = _decision("unretire", "Replay a retired corpus again, from the next stage on.")


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


def _print_corpus(corpus: Corpus, run_file: str, as_json: bool) -> None:
    if as_json:
        print_json({"corpus": corpus.name, "state": corpus.state, "story": corpus.event_kinds})
        return
    out.print(f"{corpus.name} is {corpus.state} now")
    out.print(f"next      perennial run {run_file}")
