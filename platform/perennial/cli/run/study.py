"""`perennial study`: arms over seeds, and what they say of claims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from perennial.cli.command import AsJson, DryRun, Overrides, check_output, open_run
from perennial.cli.console import log, out, print_json

if TYPE_CHECKING:
    from perennial.config.study import StudySpec
    from perennial.study.results import StudyResults

StudyFile = Annotated[
    Path,
    typer.Argument(metavar="STUDY_FILE", help="The study file, such as pipelines/studies/gap.yaml"),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Most runs side by side; default as many as cores"),
]
Output = Annotated[
    Path | None, typer.Option("--output", help="A local file for the page, pictures beside it")
]


def study(
    study_file: StudyFile,
    overrides: Overrides = None,
    jobs: Jobs = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Run what is missing of a study, and write its page. Safe to repeat and kill."""
    from perennial.config import load
    from perennial.config.study import StudySpec
    from perennial.errors import StudyFailed

    check_output(output)
    spec, changed = load(study_file, StudySpec, overrides or ()), overrides or ()
    run = open_run(spec.run, None)
    if dry_run:
        _print_plan(run.plan_study(spec, study_file, jobs=jobs, overrides=changed), spec, as_json)
        return

    def say(line: str) -> None:
        log.print(line, soft_wrap=True, markup=False)

    done = run.study(spec, study_file, output, jobs=jobs, overrides=changed, log=say)
    if as_json:
        print_json(done.to_dict())
    else:
        _print_claims(done.results)
        out.print(f"page      {done.page}")
    if done.failed:
        name, reason = next(iter(done.failed.items()))
        count = len(done.results.study.runs)
        raise StudyFailed(f"{len(done.failed)} of {count} runs failed; {name}: {reason}")


def _print_plan(document: dict[str, Any], spec: StudySpec, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    table = Table(title=f"{spec.name}: what is missing, in order", title_justify="left")
    for column in ("run", "state", "shared stages", "corpora of", "tokens", "hours"):
        table.add_column(column, justify="right" if column in ("tokens", "hours") else "left")
    for run in document["runs"]:
        shared = f"{run['shared']} of {run['donor']}" if run["donor"] else "-"
        tokens = "not known" if run["unknown"] else f"{run['tokens']:,}"
        hours = "not known" if run["hours"] is None else f"{run['hours']:.2f}"
        table.add_row(run["run"], run["state"], shared, run["lender"] or "-", tokens, hours)
    out.print(table)
    hours = document["hours"]
    if hours is not None:
        out.print(f"time      {hours:.2f} h of one run at a time, {document['jobs']} side by side")
    if document["budget_hours"] is not None:
        out.print(
            f"budget    {document['budget_hours']:g} h, spent {document['spent_hours']:.2f} h"
        )


def _print_claims(results: StudyResults) -> None:
    table = Table(title=f"{results.study.spec.name}: claims", title_justify="left")
    for column in ("claim", "found", "seeds", "verdict"):
        table.add_column(column)
    for judgement in results.judgements:
        measured = judgement.measured
        signed = judgement.claim.against is not None
        value = "-" if measured is None else measured.text(signed=signed)
        count = "0" if measured is None else str(measured.count)
        table.add_row(judgement.claim.says, value, count, judgement.verdict)
    out.print(table)
