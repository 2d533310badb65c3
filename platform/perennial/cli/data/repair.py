"""`perennial repair`: mend a run's store from a copy of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.command import AsJson, DryRun, Overrides, RunFile, open_run
from perennial.cli.console import out, print_json

if TYPE_CHECKING:
    from perennial.audit.repair import Repair


def repair(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    copy: Annotated[
        str | None, typer.Option("--from", metavar="STORE", help="A copy of the run's store")
    ] = None,
) -> None:
    """Mend the store: take from a copy what is lost, set aside what belongs to no run."""
    run = open_run(run_file, overrides)
    done = run.plan_repair(copy) if dry_run else run.repair(copy)
    if as_json:
        print_json(done.to_dict())
    else:
        _print_repair(done, run_file, "" if copy is None else f" --from {copy}")
    if done.findings:
        raise typer.Exit(1)


def _print_repair(done: Repair, run_file: str, source: str) -> None:
    words = ("restored", "set aside", "corrected")
    if not done.acted:
        words = ("to restore", "to set aside", "to correct")
    for word, keys in zip(words, (done.restored, done.set_aside, done.corrected), strict=True):
        for key in keys:
            out.print(f"{word:12}  {key}", markup=False)
    for finding in done.findings:
        out.print(str(finding), markup=False)
    if not done.acted and (done.restored or done.set_aside or done.corrected):
        out.print(f"next      perennial repair {run_file}{source}   do it")
    elif done.findings:
        out.print(f"next      perennial repair {run_file} --from STORE   a copy that has more")
    else:
        # A store alone is read and not trained.
        verb = "run" if run_file.endswith((".yaml", ".yml")) else "status"
        out.print(f"next      perennial {verb} {run_file}")
