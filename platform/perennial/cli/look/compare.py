"""`perennial compare`: runs side by side at equal tokens, over seeds, and the compute saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from perennial.cli.command import AsJson, check_output, open_run
from perennial.cli.console import out, print_json

if TYPE_CHECKING:
    from perennial.report import html
    from perennial.report.compare import Comparison
    from perennial.report.compared_run import ComparedRun

RunFiles = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN_FILE...",
        help="Run files or stores; the first is compared with the others. Runs that differ in "
        "their seed alone are taken together",
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", help="A local file for the same as one HTML page")
]
Csv = Annotated[
    Path | None, typer.Option("--csv", help="A local file for losses, gaps and transfer as CSV")
]
Latex = Annotated[
    Path | None, typer.Option("--latex", help="A local file for the same as tables of booktabs")
]


def compare(
    run_files: RunFiles,
    output: Output = None,
    csv: Csv = None,
    latex: Latex = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs at equal tokens: losses, gaps, compute saved against retraining."""
    files = {"page": output, "csv": csv, "latex": latex}
    for option, path in zip(("--output", "--csv", "--latex"), files.values(), strict=True):
        check_output(path, option)
    first, *others = [open_run(path, None) for path in run_files]
    comparison = first.compare(others, output, csv=csv, latex=latex)
    if as_json:
        written = {name: str(path.absolute()) if path else None for name, path in files.items()}
        print_json(comparison.to_dict() | written)
        return
    _print_losses(comparison)
    _print_gaps(comparison)
    _print_transfer(comparison)
    _print_tasks(comparison)
    for run in comparison.runs[:1]:
        _print_bill(run)
    notes = {"page": "   (opens without a network)", "latex": "   (needs \\usepackage{booktabs})"}
    for name, path in files.items():
        if path is not None:
            out.print(f"{name:10}{path.absolute()}{notes.get(name, '')}", markup=False)


def _print_losses(comparison: Comparison) -> None:
    from perennial.report import compare_tables as tables

    over = ", mean over seeds ± 95% interval" if comparison.is_seeded else ""
    note = "" if comparison.in_nats else " (the tokenizers differ)"
    groups = [tables.losses(comparison, group) for group in comparison.groups]
    _print_table(f"held-out loss, {comparison.unit}{note}{over}", groups)
    if not comparison.corpora:
        out.print("note      no corpus was measured in all of these runs on the same documents")


def _print_gaps(comparison: Comparison) -> None:
    from perennial.report import compare_tables as tables

    name = comparison.arms[0].name
    # One pair of every run, that which cost most; the page and --json have them all.
    gaps = tables.dearest_gaps(comparison)
    if gaps is None:
        if len(comparison.arms) > 1:
            paired = " with a seed in common" if comparison.is_seeded else ""
            out.print(f"note      no other model{paired} cost the same as one of {name}'s")
        return
    paired = ", paired by seed ± 95% interval" if comparison.is_seeded else ""
    _print_table(f"{name} minus the others at equal tokens{paired}: below 0 it is better", [gaps])


def _print_transfer(comparison: Comparison) -> None:
    from perennial.report import compare_tables as tables

    table = tables.transfer(comparison)
    if table is not None:
        _print_table("mean loss over time steps as in TiC-LM, nats per token", [table])


def _print_tasks(comparison: Comparison) -> None:
    from perennial.report import compare_tables as tables

    table = tables.tasks(comparison)
    if table is not None:
        _print_table("lm-eval on the last model of every run", [table])


def _print_bill(run: ComparedRun) -> None:
    from perennial.report import compare_tables as tables

    costs = tables.bill(run)
    parts = [replace(costs, rows=rows) for rows in (costs.rows[:-1], costs.rows[-1:])]
    _print_table(f"cost of every arrival to {run.name}, in tokens", parts)
    bill, flops = run.bill, run.flops_per_token
    spent, retraining = bill.tokens * flops, bill.retrained_tokens * flops
    out.print(
        f"compute   {spent:.3g} FLOPs instead of {retraining:.3g}, at {flops:.3g} a token: "
        f"{bill.saved:.0%} saved"
    )


def _print_table(title: str, groups: Sequence[html.Table]) -> None:
    """Print tables of the same columns as one, with a line between them."""
    table = Table(title=title, title_justify="left")
    for column in groups[0].columns:
        is_number = column in groups[0].numbers
        table.add_column(
            column,
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",
        )
    for group in groups:
        for row in group.rows:
            table.add_row(*(cell.replace(" ± ", "±") for cell in row))
        table.add_section()
    out.print(table)
