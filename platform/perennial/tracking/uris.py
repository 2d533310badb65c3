"""Locations of MLflow's database and artifacts, and the command that serves them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.store import Store

ARTIFACTS = "mlflow-artifacts:/"
"""how MLflow names its folder of artifacts, wherever that is"""
_SQLITE = "sqlite:///"


def own_uri(store: Store) -> str | None:
    """Return the URI of the database that a local store holds; None for a store in a bucket."""
    return f"{_SQLITE}{store.url}/mlflow/mlflow.db" if store.is_local else None


def default_uri(store: Store) -> str:
    """Return MLFLOW_TRACKING_URI where it is set, else an SQLite file inside a local store.

    Raises:
        InputError: the store is in a bucket, where SQLite cannot keep its file.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if own := own_uri(store):
        return own
    raise InputError(
        store.url,
        "tracking.uri",
        "a store in a bucket cannot hold MLflow's database",
        "set tracking.uri or MLFLOW_TRACKING_URI to your MLflow server, e.g. http://mlflow:5000",
        code="tracking-uri-missing",
    )


def sqlite_path(uri: str) -> Path | None:
    """Return the path of an SQLite file; None for any other database, and for one in memory."""
    if not uri.startswith(_SQLITE):
        return None
    name = uri.removeprefix(_SQLITE).partition("?")[0]
    return None if name in ("", ":memory:") else Path(name)


def artifact_root(uri: str) -> str | None:
    """Return the folder for artifacts beside an SQLite file; None where the server decides."""
    path = sqlite_path(uri)
    return None if path is None else str(path.absolute().parent / "artifacts")


def ui_command(
    uri: str, artifacts: str | None = None, host: str = "127.0.0.1", port: int = 5000
) -> list[str]:
    """Return the command that serves MLflow's pages and API over a database until it is stopped.

    Args:
        uri: SQLAlchemy URL of the database.
        artifacts: folder or URL of the artifacts; by default a folder beside an SQLite file.
        host: address that the server listens on.
        port: its port.

    Raises:
        InputError: `uri` is that of a server already.
    """
    if uri.startswith(("http://", "https://")):
        raise InputError(
            "perennial ui",
            "tracking.uri",
            "it is an MLflow server already",
            f"open {uri}",
            code="tracking-is-server",
        )
    command = [
        "env",
        "MLFLOW_DISABLE_TELEMETRY=true",
        # The job runner is not used here, and would start 8 more processes that take 1.6 GB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false",
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri),
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]
    root = artifacts or artifact_root(uri)
    return command if root is None else [*command, "--artifacts-destination", root]
