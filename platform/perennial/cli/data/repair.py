"""`perennial repair`: mend a run's store from a copy of it, or by training again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.command import AsJson, DryRun, Overrides, RunFile, open_run
from perennial.cli.console import out, print_json

if TYPE_CHECKING:
    from perennial.audit.repair import Repair
    from perennial.audit.retraining import RetrainedCheckpoint


def repair(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    copy: Annotated[
        str | None, typer.Option("--from", metavar="STORE", help="A copy of the run's store")
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train the steps of damaged checkpoints again")
    ] = False,
) -> None:
    """Mend the store from a copy or by training again; set aside what belongs to no run."""
    run = open_run(run_file, overrides)
    verb = run.plan_repair if dry_run else run.repair
    done = verb(copy, retrain=retrain)
    if as_json:
        print_json(done.to_dict())
    else:
        source = "" if copy is None else f" --from {copy}"
        _print_repair(done, run_file, f"{source} --retrain" if retrain else source)
    if done.findings:
        raise typer.Exit(1)


def _print_repair(done: Repair, run_file: str, source: str) -> None:
    words = ("restored", "set aside", "corrected")
    if not done.acted:
        words = ("to restore", "to set aside", "to correct")
    for word, keys in zip(words, (done.restored, done.set_aside, done.corrected), strict=True):
        for key in keys:
            out.print(f"{word:12}  {key}", markup=False)
    for its in done.retrained:
        _print_retrained(its, acted=done.acted)
    for finding in done.findings:
        out.print(str(finding), markup=False)
    trained = any(not its.code for its in done.retrained)
    if not done.acted and (done.restored or done.set_aside or done.corrected or trained):
        out.print(f"next      perennial repair {run_file}{source}   do it", markup=False)
    elif done.findings:
        _print_next(done, run_file)
    else:
        # A store alone is read and not trained.
        verb = "run" if run_file.endswith((".yaml", ".yml")) else "status"
        out.print(f"next      perennial {verb} {run_file}")


def _print_retrained(its: RetrainedCheckpoint, *, acted: bool) -> None:
    if its.code:
        out.print(f"not trained   {its.checkpoint}: {its.reason}", markup=False)
        return
    words = "trained again" if acted else "to train again"
    group = "1 worker" if its.workers == 1 else f"{its.workers} workers"
    source = its.source or "the beginning of the run"
    length = "1 step" if its.steps == 1 else f"{its.steps:,} steps"
    proof = ": the same by digest" if acted else ""
    files = ", ".join(its.files)
    out.print(
        f"{words}  {its.checkpoint} ({files}), {length} from {source} on {group}{proof}",
        markup=False,
    )


def _print_next(done: Repair, run_file: str) -> None:
    """Print what may mend what is still wrong."""
    is_trunk = any(finding.key.startswith("checkpoints/") for finding in done.findings)
    if is_trunk and not done.retrained:
        out.print(f"next      perennial repair {run_file} --retrain --dry-run   train steps again")
    out.print(f"next      perennial repair {run_file} --from STORE   a copy that has more")
