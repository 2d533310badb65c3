"""`perennial erase`: the right to be forgotten, for a corpus or documents of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.command import (
    AsJson,
    DryRun,
    Overrides,
    RunFile,
    TakeOver,
    open_run,
    print_preview,
)
from perennial.cli.console import out, print_json
from perennial.cli.decide.corpus import Reason

if TYPE_CHECKING:
    from perennial.controller.erasing.erase import Erasure

CorpusName = Annotated[str, typer.Argument(metavar="CORPUS", help="The corpus")]
Documents = Annotated[
    Path | None,
    typer.Option("--documents", metavar="FILE", help="Documents of it, one a line; default all"),
]
_SHOWN = 20
"""lines of one kind that are printed; `--json` has all"""


def erase(
    run_file: RunFile,
    corpus: CorpusName,
    overrides: Overrides = None,
    documents: Documents = None,
    reason: Reason = "",
    as_json: AsJson = False,
    dry_run: DryRun = False,
    take_over: TakeOver = False,
) -> None:
    """Erase a corpus, or documents of it; list the models that were trained on it."""
    run = open_run(run_file, overrides)
    if dry_run:
        planned = run.plan_erase(corpus, documents)
        print_preview(run, [*_lines(planned)], {"erasure": planned.to_dict()})
        return
    done = run.erase(corpus, documents, reason, take_over=take_over)
    if as_json:
        print_json(done.to_dict())
    else:
        for line in _lines(done):
            out.print(line, markup=False, soft_wrap=True)
        verb = "run" if run_file.endswith((".yaml", ".yml")) else "verify"
        after = "the later stages go on without it" if verb == "run" else "it knows the tombstone"
        out.print(f"next      perennial {verb} {run_file}   {after}")
    if done.missing:
        raise typer.Exit(1)


def _lines(its: Erasure) -> list[str]:
    what = "all of it" if its.whole else f"{its.documents:,} documents, {its.held_out:,} held out"
    lines = [f"erased    {its.corpus}: {what}, {its.tokens:,} tokens"]
    if its.leaves:
        lines.append(f"left      {its.leaves}, which stays readable")
    lines += [f"trained   {name}, from step {step:,} on" for name, step in its.stages.items()]
    lines += _some("in        {}", [*its.checkpoints])
    lines += _some("in        release {}", [*its.releases])
    lines += _some("removed   {}", [*its.removed])
    lines += [f"kept      {words}" for words in its.kept]
    lines += [
        f"missing   in MLflow: {words}; repeat with `perennial track`" for words in its.missing
    ]
    return lines


def _some(form: str, names: list[str]) -> list[str]:
    shown = [form.format(name) for name in names[:_SHOWN]]
    more = len(names) - len(shown)
    return shown + ([form.format(f"{more:,} more, see --json")] if more else [])
