"""`perennial ui`: MLflow's pages on the run's tracking store."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from perennial.cli.app import DryRun, Overrides, RunFile, verb
from perennial.cli.console import log, print_json
from perennial.cli.opening import read_run


@verb
def ui(
    run_file: RunFile,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port")] = 5000,
) -> None:
    """Start the MLflow UI on the run's tracking store; ends with Ctrl-C."""
    from perennial import tracking
    from perennial.cli.console import Screen
    from perennial.controller.context import Workspace
    from perennial.telemetry.mlflow_observer import tracking_uri

    work = Workspace(read_run(run_file, overrides), str(run_file), [Screen()])
    command = tracking.ui_command(tracking_uri(work), host=host, port=port)
    if dry_run:
        print_json({"command": command})
        return
    log.print(f"MLflow at http://{host}:{port} (Ctrl-C ends it; it needs some seconds to start)")
    os.execvp(command[0], command)
