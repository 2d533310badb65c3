"""`perennial promote`: point an alias such as `production` to a release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.command import AsJson, DryRun, Overrides, RunFile, open_run, print_preview
from perennial.cli.console import out, print_json
from perennial.cli.decide.corpus import Reason

if TYPE_CHECKING:
    from perennial.controller.promote import Promotion

ReleaseName = Annotated[
    str,
    typer.Argument(metavar="RELEASE", help="The release, or `previous` to go back"),
]
Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="Such as production")]


def promote(
    run_file: RunFile,
    release: ReleaseName,
    alias: Alias,
    overrides: Overrides = None,
    reason: Reason = "",
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Point an alias to a release whose gates hold, in the store and in MLflow's registry."""
    run = open_run(run_file, overrides)
    if dry_run:
        planned = run.plan_promotion(release, alias)
        print_preview(run, [f"point {alias} to {planned.release}"] if planned.moved else [])
        return
    done = run.promote(release, alias, reason)
    if as_json:
        print_json(done.to_dict())
    else:
        _show(done, run.spec.store, run_file)
    if done.missing:
        raise typer.Exit(1)


def _show(done: Promotion, store: str, run_file: str) -> None:
    out.print(f"{done.alias} is {done.release} now")
    out.print(f"folder    {store}/{done.folder}")
    if done.before:
        out.print(f"before    {done.before}")
        out.print(f"back      perennial promote {run_file} previous {done.alias}")
    for words in done.missing:
        out.print(f"missing   in MLflow: {words}", markup=False)
    if done.missing:
        out.print(f"next      perennial track {run_file}   when MLflow answers")
