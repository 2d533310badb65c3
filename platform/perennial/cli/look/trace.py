"""`perennial trace`: from rows of a corpus, or a step, back to the documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.command import AsJson, RunFile, open_run
from perennial.cli.console import out, print_json
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.api.trace import TracedRows

Corpus = Annotated[str | None, typer.Argument(metavar="[CORPUS", help="Corpus of the rows")]
Rows = Annotated[
    list[int] | None,
    typer.Argument(metavar="ROW...]", help="Numbers of its rows, from 0", min=0),
]
Step = Annotated[
    int | None, typer.Option("--step", help="A step of the trunk, for all rows of its batch")
]
Release = Annotated[
    str | None,
    typer.Option("--release", metavar="NAME", help="The step is one of this release's anneal"),
]


def trace(
    run_file: RunFile,
    corpus: Corpus = None,
    rows: Rows = None,
    step: Step = None,
    release: Release = None,
    as_json: AsJson = False,
) -> None:
    """Name the documents in rows of a corpus, or in the batch of a step. Reads only."""
    run = open_run(run_file, None)
    if step is not None and corpus is None:
        traced = run.trace_step(step, release)
    elif step is None and release is None and corpus is not None and rows:
        traced = run.trace(corpus, rows)
    else:
        raise InputError(
            "command line", "CORPUS ROW...", "neither rows nor a step are named, or both are",
            "name a corpus and its rows, or --step", code="nothing-to-trace",
        )  # fmt: skip
    if as_json:
        print_json(traced.to_dict())
    else:
        _print_documents(traced)


def _print_documents(traced: TracedRows) -> None:
    if traced.stage:
        out.print(f"trained in {traced.stage}")
    for corpus, spans in traced.documents.items():
        for span in spans:
            place = f"{corpus} row {span.row}, tokens {span.start} to "
            place += f"{span.start + span.tokens - 1}: {span}"
            rest = f", from its token {span.before}" if span.before else ""
            out.print(place + rest, markup=False, soft_wrap=True)
