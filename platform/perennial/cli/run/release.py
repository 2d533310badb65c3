"""`perennial release`: anneal a branch off the trunk and export it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from perennial.cli.command import AsJson, DryRun, Overrides, RunFile, open_run, print_preview
from perennial.cli.console import out, print_json, print_matrix
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.api.results import ReleaseSummary
    from perennial.api.run import Run

Mixture = Annotated[
    str | None,
    typer.Option(
        "--mixture",
        help="What the anneal trains on: stage, seen, balanced, or weights such as "
        "'english=2,french=1'",
    ),
]
Average = Annotated[
    str | None,
    typer.Option(
        "--average",
        metavar="last:N[:WEIGHTING]",
        help="The average of the trunk's last N checkpoints in place of an anneal; weighting "
        "uniform (default), linear or 1-sqrt",
    ),
]


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
    mixture: Mixture = None,
    average: Average = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="PLACE",
            help="Copy it, with a card of what was measured: a folder, s3:// or gs://, or "
            "hf://OWNER/NAME of the Hugging Face Hub",
        ),
    ] = None,
    copied_as: Annotated[
        Literal["safetensors", "gguf"],
        typer.Option("--format", help="Of the copy: a folder of safetensors, or one GGUF file"),
    ] = "safetensors",
    trunk_kit: Annotated[
        bool,
        typer.Option(
            "--trunk-kit",
            help="In place of a release, write what lets others continue the trunk: weights in "
            "fp32, the optimizer's state, and a run file that starts from them",
        ),
    ] = False,
) -> None:
    """Anneal a branch off the trunk and export it as a Hugging Face folder."""
    if trunk_kit:
        _check_options(tokens, mixture, average, copied_as)
    run = open_run(run_file, overrides)
    if trunk_kit:
        _make_kit(run, origin, to, as_json=as_json, dry_run=dry_run)
        return
    if dry_run:
        print_preview(run, run.plan_release(origin, tokens, to, copied_as, mixture, average))
        return
    made = run.release(origin, tokens, to, copied_as, mixture, average)
    if as_json:
        print_json(made.to_dict())
        return
    _show(made, to, run_file)


def _show(made: ReleaseSummary, to: str | None, run_file: str) -> None:
    """Print a release."""
    print_matrix(made.matrix)
    for sample in made.samples:
        # A model's text may hold brackets, which rich would take for its markup.
        its = sample.rendering
        drawn = f"(drawn in the report by {its.by.split()[0]})" if its and its.png else ""
        text = escape(drawn or " ".join(((its.text if its else "") or sample.text).split()))
        start = f"[bold]{sample.corpus}[/bold]  {escape(sample.prompt)}"
        out.print(f"{start} [dim]…[/dim]{text}", markup=True)
    out.print(f"release   {made.url}")
    out.print(f"load it   AutoModelForCausalLM.from_pretrained('{made.url}')")
    if to is not None:
        out.print(f"copied    {to}")
    out.print(f"next      perennial evaluate {run_file}   score it on the run file's tasks")
    out.print(f"          perennial ui {run_file}         curves in MLflow")


def _check_options(
    tokens: str | None, mixture: str | None, average: str | None, copied_as: str
) -> None:
    """Refuse options of a release, which a trunk kit is not."""
    given = {
        "--tokens": tokens is not None,
        "--mixture": mixture is not None,
        "--average": average is not None,
        "--format": copied_as != "safetensors",
    }
    for option in (option for option, is_given in given.items() if is_given):
        raise InputError(
            "command line",
            option,
            "a trunk kit is one checkpoint, not annealed, in a folder of safetensors",
            f"leave {option} or --trunk-kit out",
            code="options-conflict",
        )


def _make_kit(
    run: Run, origin: str | None, to: str | None, *, as_json: bool, dry_run: bool
) -> None:
    if dry_run:
        print_preview(run, run.plan_trunk_kit(origin, to))
        return
    made = run.make_trunk_kit(origin, to)
    if as_json:
        print_json(made.to_dict())
        return
    out.print(f"trunk kit {made.place}")
    out.print(f"of        {made.source}, {made.size_bytes:,} bytes, digest {made.digest}")
    out.print("next      in its folder, or a copy of it, edit run.yaml: a name, and a store")
    out.print("          perennial land run.yaml NAME FILES...   your documents")
    out.print("          perennial run run.yaml                  the trunk goes on with them")
