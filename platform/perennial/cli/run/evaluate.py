"""`perennial evaluate`: the loss matrix, transfer, and lm-eval tasks on the latest release."""

from __future__ import annotations

from perennial.cli.command import AsJson, DryRun, Overrides, RunFile, open_run, print_preview
from perennial.cli.console import out, print_json, print_matrix, print_scores


def evaluate(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Measure what is missing of the stage x corpus matrix; score the latest release on tasks."""
    run = open_run(run_file, overrides)
    if dry_run:
        print_preview(run, run.plan_evaluate())
        return
    evaluation = run.evaluate()
    if as_json:
        print_json(evaluation.to_dict())
        return
    print_matrix(evaluation.matrix)
    for release, scores in evaluation.scores.items():
        print_scores(release, scores)
    out.print(f"next      perennial ui {run_file}   the same in MLflow, with pictures")
