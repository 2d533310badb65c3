"""`perennial verify`: prove a run from what is in its store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from perennial.cli.command import AsJson, Overrides, RunFile, open_run
from perennial.cli.console import log, out, print_json

if TYPE_CHECKING:
    from perennial.audit.verify import Verification


def verify(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Prove from the store alone that the run is what its ledger records. Reads only."""
    run = open_run(run_file, overrides)
    began = time.monotonic()
    with _Bar() as bar:
        verification = run.verify(bar.show)
    if as_json:
        print_json(verification.to_dict())
    else:
        _print_verification(verification, time.monotonic() - began)
    if verification.findings:
        raise typer.Exit(1)


class _Bar:
    """A live line of bytes read, on a terminal."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("verifying"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("{task.fields[key]}"),
            console=log,
            transient=True,
            disable=not log.is_terminal,
        )
        self._task = self._bars.add_task("verifying", total=None, key="")

    def __enter__(self) -> _Bar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, key: str, read_bytes: int, all_bytes: int) -> None:
        self._bars.update(self._task, completed=read_bytes, total=all_bytes, key=key)


def _print_verification(done: Verification, seconds: float) -> None:
    for finding in done.findings:
        out.print(str(finding), markup=False)
    if not done.findings:
        table = Table(title=f"{done.store} holds", title_justify="left")
        table.add_column("proved")
        table.add_column("of")
        for claim, amount in done.proofs().items():
            table.add_row(claim, amount)
        out.print(table)
    faults = len(done.findings)
    end = "no fault" if not faults else f"{faults} fault{'s' if faults > 1 else ''}"
    out.print(
        f"read {done.files:,} files, {done.read_bytes / 1e6:,.1f} MB in {seconds:.1f} s: {end}"
    )
