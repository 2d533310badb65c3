"""`perennial trace`: from rows to documents, and from a document to the models that saw it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.command import AsJson, RunFile, open_run
from perennial.cli.console import out, print_json
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.api.trace import TracedRows
    from perennial.api.trace_document import TracedDocument, TracedPlace, TracedRelease

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
    typer.Option(
        "--release", metavar="NAME", help="What it was trained on; with --step, of its anneal"
    ),
]
DocumentId = Annotated[
    str | None,
    typer.Option("--document", metavar="ID", help="Digest of a document: every model that saw it"),
]
TextFile = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="The same, of the document with this text"),
]


def trace(
    run_file: RunFile,
    corpus: Corpus = None,
    rows: Rows = None,
    step: Step = None,
    release: Release = None,
    document: DocumentId = None,
    text: TextFile = None,
    as_json: AsJson = False,
) -> None:
    """Name the documents in rows or in a step's batch, or the models that saw one. Reads only."""
    run = open_run(run_file, None)
    given = [corpus is not None, step is not None, document is not None, text is not None]
    if sum(given) > 1 or (release is not None and any(given) and step is None):
        raise _unclear()
    traced: TracedRows | TracedDocument | TracedRelease
    if step is not None:
        traced = run.trace_step(step, release)
    elif document is not None:
        traced = run.trace_document(document)
    elif text is not None:
        traced = run.trace_text(text)
    elif release is not None:
        traced = run.trace_release(release)
    elif corpus is not None and rows:
        traced = run.trace(corpus, rows)
    else:
        raise _unclear()
    if as_json:
        print_json(traced.to_dict())
    else:
        for line in _lines(traced):
            out.print(line, markup=False, soft_wrap=True)


def _unclear() -> InputError:
    return InputError(
        "command line", "CORPUS ROW...", "nothing is named that can be traced, or several things",
        "name a corpus and its rows, or --step, or --document, or --text, or --release",
        code="nothing-to-trace",
    )  # fmt: skip


def _lines(traced: TracedRows | TracedDocument | TracedRelease) -> Iterator[str]:
    from perennial.api.trace_document import TracedDocument, TracedRelease

    if isinstance(traced, TracedDocument):
        for place in traced.places:
            yield from _place_lines(place)
        yield "next      perennial erase RUN_FILE CORPUS --documents FILE   with this digest"
    elif isinstance(traced, TracedRelease):
        yield f"branches off {traced.origin}, after {', '.join(traced.stages)}"
        for corpus, tokens in traced.tokens.items():
            gone = ", erased since" if corpus in traced.erased else ""
            yield f"{corpus}: {tokens:,} tokens{gone}"
    else:
        yield from _row_lines(traced)


def _place_lines(place: TracedPlace) -> Iterator[str]:
    from perennial.api.trace import describe_span

    for span in place.spans:
        yield describe_span(place.corpus, span)
    if place.held_out:
        yield f"{place.corpus}: held out, so that nothing is trained on it"
    if place.erased:
        yield f"{place.corpus}: erased"
    for name, step in place.stages.items():
        yield f"trained   {name}, from step {step:,} on"
    for key in place.checkpoints:
        yield f"in        {key}"
    for name in place.releases:
        yield f"in        release {name}"


def _row_lines(traced: TracedRows) -> Iterator[str]:
    from perennial.api.trace import describe_span

    if traced.stage:
        yield f"trained in {traced.stage}"
    for corpus, spans in traced.documents.items():
        for span in spans:
            yield describe_span(corpus, span)
        if not spans:
            yield f"{corpus}: erased"
