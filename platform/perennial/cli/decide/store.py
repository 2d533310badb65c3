"""`perennial fork`, `move` and `gc`: what an operator does with a run's store as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from perennial.cli.command import AsJson, DryRun, Overrides, RunFile, open_run, print_preview
from perennial.cli.console import log, out, print_json
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.controller.storage.collect import Freed
    from perennial.controller.storage.fork import Fork
    from perennial.controller.storage.move import Move

Checkpoint = Annotated[
    str,
    typer.Argument(metavar="STAGE[@STEP]", help="The checkpoint; the stage's end without @STEP"),
]
NewRun = Annotated[
    str, typer.Argument(metavar="NEW_RUN", help="The new run's file, with a store of its own")
]
NewFields = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value ...]", help="Fields that replace the new file's"),
]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        help="branches, trials, evaluations, staged, left; may be repeated. Default: all but left",
    ),
]
Place = Annotated[
    str, typer.Argument(metavar="PLACE", help="The new store: an empty folder, or s3://bucket/a")
]


def move(
    run_file: RunFile,
    place: Place,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Copy the store to another place, check the copy, and let the old one refuse."""
    run = open_run(run_file, overrides)
    if dry_run:
        print_preview(run, run.plan_move(place))
        return
    with Progress(
        TextColumn("copying"), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn(),
        console=log, transient=True, disable=not log.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("copying", total=None)
        done = run.move(place, lambda _, read, whole: bar.update(task, completed=read, total=whole))
    if as_json:
        print_json(done.to_dict())
    else:
        _show_move(done, run_file)


def fork(
    run_file: RunFile,
    checkpoint: Checkpoint,
    new_run: NewRun,
    overrides: NewFields = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Begin another run at a checkpoint; it borrows corpora and checkpoints, and copies none."""
    run = open_run(run_file, None)
    if not new_run.endswith((".yaml", ".yml")):
        raise InputError(
            "command line", "NEW_RUN", f"{new_run!r} is no run file",
            f"copy {run_file} to a file such as new.yaml, and give it a store of its own",
            code="run-file-needed",
        )  # fmt: skip
    new = open_run(new_run, overrides)
    if dry_run:
        planned = run.plan_fork(checkpoint, new)
        where = f"begin a run in {planned.store} at {planned.stage}@{planned.step}"
        print_preview(new, [where, *(f"borrow {folder}" for folder in planned.borrowed)])
        return
    done = run.fork(checkpoint, new)
    if as_json:
        print_json(done.to_dict())
    else:
        _show_fork(done, new_run)


def _show_fork(done: Fork, new_run: str) -> None:
    out.print(f"store     {done.store}", markup=False)
    out.print(f"begins    at {done.stage}@{done.step} of {done.parent}", markup=False)
    out.print(f"borrows   {len(done.borrowed):,} folders, which stay there and are pinned")
    for name in done.held:
        out.print(f"held      perennial retry {new_run} {name}   train it here, or refuse it")
    if done.goes_on:
        out.print(f"next      perennial run {new_run}   {' and '.join(done.goes_on)} go on there")
    else:
        out.print(f"next      perennial land {new_run} NAME FILES...   what it trains on now")


def _show_move(done: Move, run_file: str) -> None:
    out.print(f"store     {done.target}", markup=False)
    out.print(f"left      {done.source}, which refuses every command and can be removed")
    if done.inbox:
        out.print(f"inbox     {done.inbox}, as before", markup=False)
    if run_file.endswith((".yaml", ".yml")):
        out.print(f"next      write `store: {done.target}` into {run_file}", markup=False)
        out.print(f"          perennial verify {run_file}")
    else:
        out.print(f"next      perennial verify {done.target}", markup=False)


def gc(
    run_file: RunFile,
    overrides: Overrides = None,
    kind: Kinds = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Remove from the store what nothing needs: never what a restart or a release does."""
    run = open_run(run_file, overrides)
    if dry_run:
        todo = [
            f"remove {its.folder}: {its.kind}, {its.size_bytes:,} bytes"
            for its in run.plan_gc(kind or ()).folders
        ]
        print_preview(run, todo)
        return
    done = run.gc(kind or ())
    if as_json:
        print_json(done.to_dict())
    else:
        _show_freed(done, run_file)


def _show_freed(done: Freed, run_file: str) -> None:
    for its in done.folders:
        out.print(f"removed   {its.folder}: {its.kind}, {its.size_bytes:,} bytes", markup=False)
    out.print(f"freed     {done.size_bytes:,} bytes in {len(done.folders):,} folders")
    if done.pinned:
        out.print(f"pinned    {len(done.pinned):,} folders, which forks of this run borrow")
    out.print(f"next      perennial status {run_file} --bytes")
