"""`perennial evaluate`: the loss matrix, transfer, and lm-eval tasks on the latest release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from perennial.cli.app import AsJson, DryRun, Overrides, RunFile, verb
from perennial.cli.console import out, print_json, print_matrix
from perennial.cli.opening import show_plan, workspace

if TYPE_CHECKING:
    from collections.abc import Sequence


@verb
def evaluate(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Measure what is missing of the stage x corpus matrix; score the latest release on tasks."""
    from perennial.errors import InputError
    from perennial.stages import outcome
    from perennial.stages.release import evaluate as measure

    with workspace(run_file, overrides) as work:
        if not work.state.ends:
            raise InputError(
                str(run_file), "", "no stage was trained yet", f"use `perennial run {run_file}`"
            )
        if dry_run:
            show_plan(work.spec, [f"score {task}" for task in work.spec.evaluation.tasks])
            return
        measure(work)
        told = outcome.matrix(work.state)
        scores = work.state.scores
        if as_json:
            print_json({"matrix": told.to_dict(), "scores": scores})
            return
        print_matrix(told)
        for release, found in scores.items():
            _print_scores(release, found)
        out.print(f"next      perennial ui {run_file}   the same in MLflow, with pictures")


def _print_scores(release: str, scores: Sequence[dict[str, Any]]) -> None:
    table = Table(title=f"lm-eval on release {release}", title_justify="left")
    for column in ("task", "metric", "score", "standard error", "items"):
        table.add_column(column)
    for score in scores:
        if "reason" in score:
            table.add_row(score["task"], "not run", score["reason"], "", "")
            continue
        error = score["stderr"]
        table.add_row(
            score["task"],
            score["metric"],
            f"{score['value']:.3f}",
            "-" if error is None else f"{error:.3f}",
            str(score["samples"]),
        )
    out.print(table)
