"""`perennial release`: anneal a branch off the trunk and export it."""

from __future__ import annotations

from typing import Annotated

import typer

from perennial.cli.app import AsJson, DryRun, Overrides, RunFile, verb
from perennial.cli.console import out, print_json, print_matrix
from perennial.cli.opening import show_plan, workspace


@verb
def release(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE@STEP",
            help="The trunk's checkpoint; default the end of the last stage that passed",
        ),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", help="Length of the anneal, such as '4M tokens'")
    ] = None,
) -> None:
    """Anneal a branch off the trunk and export it as a Hugging Face folder."""
    from perennial.controller.release import plan_release
    from perennial.controller.release import release as make
    from perennial.runs import summary

    with workspace(run_file, overrides) as work:
        if dry_run:
            show_plan(work.spec, [plan_release(work, origin, tokens)])
            return
        made = make(work, origin, tokens)
        if as_json:
            print_json(made.model_dump(mode="json"))
            return
        print_matrix(summary.matrix(work.state))
        for sample in made.samples:
            out.print(
                f"[bold]{sample.corpus}[/bold]  {sample.prompt} [dim]…[/dim]"
                f"{' '.join(sample.text.split())}",
                markup=True,
            )
        out.print(f"release   {work.store.url}/{made.folder}")
        out.print(
            f"load it   AutoModelForCausalLM.from_pretrained('{work.store.url}/{made.folder}')"
        )
        out.print(f"next      perennial evaluate {run_file}   score it on the run file's tasks")
        out.print(f"          perennial ui {run_file}         curves in MLflow")
