"""`perennial report`: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perennial.cli.app import AsJson, Overrides, RunFile, verb
from perennial.cli.console import out, print_json
from perennial.cli.opening import workspace
from perennial.errors import InputError

Output = Annotated[
    Path | None, typer.Option("--output", help="A local file to write the page to as well")
]


@verb
def report(
    run_file: RunFile,
    overrides: Overrides = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """One HTML page that needs no network: lineage, learning rate, losses, forgetting, samples."""
    from perennial.report.build import KEY
    from perennial.report.build import report as write
    from perennial.runs.ledger import now

    check_output(output)
    with workspace(run_file, overrides) as work:
        if not work.state.corpora:
            raise InputError(
                str(run_file),
                "",
                "nothing has landed yet, so there is nothing to report",
                f"use `perennial land {run_file} NAME FILES...`",
            )
        html = write(work, now())
        if output is not None:
            output.write_text(html, encoding="utf-8")
        place = str(output.absolute()) if output else f"{work.store.url}/{KEY}"
    if as_json:
        print_json({"page": place, "bytes": len(html.encode())})
        return
    out.print(f"page      {place}   ({len(html.encode()) / 1e6:.1f} MB, opens without a network)")
    out.print(f"next      open it in a browser; the same pictures: perennial ui {run_file}")


def check_output(output: Path | None) -> None:
    """Refuse a file that cannot be written, before any work is done."""
    if output is not None and not output.absolute().parent.is_dir():
        folder = str(output.absolute().parent)
        raise InputError("command line", "--output", f"{folder} is no folder", "make it first")
