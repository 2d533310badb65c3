"""`perennial evaluate`: the loss matrix, transfer, and lm-eval tasks on the latest release."""

from __future__ import annotations

from perennial.cli.app import AsJson, DryRun, Overrides, RunFile, verb
from perennial.cli.console import out, print_json, print_matrix, print_scores
from perennial.cli.opening import show_plan, workspace


@verb
def evaluate(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Measure what is missing of the stage x corpus matrix; score the latest release on tasks."""
    from perennial.controller.release import evaluate as measure
    from perennial.errors import InputError
    from perennial.runs import summary

    with workspace(run_file, overrides) as work:
        if not work.state.ends:
            raise InputError(
                str(run_file), "", "no stage was trained yet", f"use `perennial run {run_file}`"
            )
        if dry_run:
            show_plan(work.spec, [f"score {task}" for task in work.spec.evaluation.tasks])
            return
        measure(work)
        told = summary.matrix(work.state)
        scores = work.state.scores
        if as_json:
            plain = told.to_dict(summary.untrained_nats(work.store))
            print_json({"matrix": plain, "scores": scores})
            return
        print_matrix(told)
        for release, found in scores.items():
            print_scores(release, found)
        out.print(f"next      perennial ui {run_file}   the same in MLflow, with pictures")
