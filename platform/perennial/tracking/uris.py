"""Where MLflow keeps its rows and artifacts, and the command that shows them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.store import Store

_SQLITE = "sqlite:///"


def default_uri(store: Store) -> str:
    """MLFLOW_TRACKING_URI where it is set, else an SQLite file inside a local store.

    Raises InputError for a store in S3: SQLite cannot live there.
    """
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    if store.is_local:
        return f"{_SQLITE}{store.url}/mlflow/mlflow.db"
    raise InputError(
        store.url,
        "tracking.uri",
        "a store in S3 has no MLflow of its own",
        "set tracking.uri or MLFLOW_TRACKING_URI to your MLflow server, e.g. http://mlflow:5000",
    )


def artifact_root(uri: str) -> str | None:
    """Folder for artifacts beside an SQLite file; None where the MLflow server decides."""
    if not uri.startswith(_SQLITE):
        return None
    return str(Path(uri.removeprefix(_SQLITE)).absolute().parent / "artifacts")


def ui_command(
    uri: str, artifacts: str | None = None, host: str = "127.0.0.1", port: int = 5000
) -> list[str]:
    """The command that serves MLflow's pages, and its API, over a database until it is stopped.

    artifacts: where artifacts sent through this server go; by default beside an SQLite file.
    Raises InputError when `uri` is a server already.
    """
    if uri.startswith(("http://", "https://")):
        raise InputError(
            "perennial ui", "tracking.uri", "it is an MLflow server already", f"open {uri}"
        )
    command = [
        "env",
        "MLFLOW_DISABLE_TELEMETRY=true",
        # Its job runner, which this project has no use for, takes 8 more processes and 1.6 GB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false",
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri),
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]
    root = artifacts or artifact_root(uri)
    return command if root is None else [*command, "--artifacts-destination", root]
