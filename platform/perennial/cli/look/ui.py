"""`perennial ui`: MLflow's pages on the run's tracking store."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from perennial.cli.command import AsJson, DryRun, Overrides, RunFile, open_run
from perennial.cli.console import log, print_json, print_json_line


def ui(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port")] = 5000,
) -> None:
    """Serve MLflow's pages and print the address of the run's own; ends with Ctrl-C."""
    run = open_run(run_file, overrides)
    command = run.ui_command(host=host, port=port)
    if dry_run:
        print_json({"command": command})
        return
    run.prepare_tracking()
    url = f"http://{host}:{port}/{run.tracked_page()}"
    if as_json:
        print_json_line({"url": url, "command": command})
    log.print(f"the run's page, in some seconds: {url}", soft_wrap=True)
    log.print("MLflow serves it until Ctrl-C")
    os.execvp(command[0], command)
