"""`perennial compare`: runs side by side at equal tokens, and the compute saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from perennial.cli.command import AsJson, check_output, open_run
from perennial.cli.console import out, print_json

if TYPE_CHECKING:
    from perennial.report.compare import ComparedRun, Comparison

RunFiles = Annotated[
    list[str],
    typer.Argument(metavar="RUN_FILE...", help="Run files; the first is compared with the others"),
]
Output = Annotated[
    Path | None, typer.Option("--output", help="A local file for the same as one HTML page")
]


def compare(run_files: RunFiles, output: Output = None, as_json: AsJson = False) -> None:
    """Compare runs at equal tokens: losses, gaps, compute saved against retraining."""
    check_output(output)
    first, *others = [open_run(path, None) for path in run_files]
    comparison = first.compare(others, output)
    if as_json:
        print_json(comparison.to_dict() | {"page": str(output.absolute()) if output else None})
        return
    _print_losses(comparison)
    _print_gaps(comparison)
    _print_tasks(comparison)
    for run in comparison.runs[:1]:
        _print_bill(run)
    if output is not None:
        out.print(f"page      {output.absolute()}   (opens without a network)")


def _print_losses(comparison: Comparison) -> None:
    from perennial.evaluation.compare import average, value_of

    unit = "nats per token" if comparison.in_nats else "bits per byte (the tokenizers differ)"
    table = Table(title=f"held-out loss, {unit}", title_justify="left")
    table.add_column("run")
    table.add_column("rate")
    for name in ("tokens", *comparison.corpora, "average"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in comparison.groups:
        for model in group:
            values = [
                value_of(model.losses[corpus], comparison.in_nats) for corpus in comparison.corpora
            ]
            mean = average(model, comparison.corpora, comparison.in_nats)
            table.add_row(
                model.run,
                model.rate,
                f"{model.tokens:,}",
                *(f"{value:.3f}" for value in values),
                "-" if mean is None else f"{mean:.3f}",
            )
        table.add_section()
    out.print(table)
    if not comparison.corpora:
        out.print("note      no corpus was measured in all of these runs on the same documents")


def _print_gaps(comparison: Comparison) -> None:
    from perennial.report.compare_page import number

    if not comparison.gaps:
        if len(comparison.runs) > 1:
            out.print(
                f"note      no other model cost the same as one of {comparison.runs[0].name}'s"
            )
        return
    title = f"{comparison.runs[0].name} minus the others at equal tokens: below 0 it is better"
    table = Table(title=title, title_justify="left")
    table.add_column("against")
    for name in (*comparison.corpora, "average"):
        table.add_column(name, justify="right", no_wrap=True)
    # One pair of every run, that which cost most; the page and --json have them all.
    for gap in {gap.theirs.run: gap for gap in comparison.gaps}.values():
        changes = [*gap.corpora.values(), *([gap.average] if gap.average else [])]
        table.add_row(gap.theirs.run, *(number(c).replace(" ", "") for c in changes))
    out.print(table)


def _print_tasks(comparison: Comparison) -> None:
    from perennial.report.compare_page import score_text

    if not comparison.tasks:
        return
    table = Table(title="lm-eval on the last model of every run", title_justify="left")
    table.add_column("task")
    for run in comparison.runs:
        table.add_column(run.name, justify="right")
    for task, scores in comparison.tasks.items():
        cells = (score_text(scores.get(run.name)).replace(" ", "") for run in comparison.runs)
        table.add_row(task, *cells)
    out.print(table)


def _print_bill(run: ComparedRun) -> None:
    table = Table(title=f"cost of every arrival to {run.name}, in tokens", title_justify="left")
    for column in ("arrival", "trained", "retraining on all so far", "saved"):
        table.add_column(column, justify="left" if column == "arrival" else "right")
    for arrival in run.bill.arrivals:
        saved = 1 - arrival.tokens / arrival.retrained_tokens
        tokens, retrained = f"{arrival.tokens:,}", f"{arrival.retrained_tokens:,}"
        table.add_row(arrival.stage, tokens, retrained, f"{saved:.0%}")
    table.add_section()
    bill = run.bill
    table.add_row("in all", f"{bill.tokens:,}", f"{bill.retrained_tokens:,}", f"{bill.saved:.0%}")
    out.print(table)
    flops = run.flops_per_token
    spent, retraining = bill.tokens * flops, bill.retrained_tokens * flops
    out.print(
        f"compute   {spent:.3g} FLOPs instead of {retraining:.3g}, at {flops:.3g} a token: "
        f"{bill.saved:.0%} saved"
    )
