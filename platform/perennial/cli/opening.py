"""From the command line's words to a checked workspace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.cli.console import Screen, print_json
from perennial.config import RunSpec, load_run

if TYPE_CHECKING:
    from perennial.controller.context import Workspace


def read_run(path: Path, overrides: Sequence[str] | None) -> RunSpec:
    """The run file with its overrides."""
    return load_run(path, overrides or ())


@contextmanager
def workspace(path: Path, overrides: Sequence[str] | None) -> Iterator[Workspace]:
    """A checked workspace; MLflow catches up when it is left."""
    from perennial.controller.context import Workspace
    from perennial.report.publish import Publisher
    from perennial.telemetry.gauge_observer import GaugeObserver
    from perennial.telemetry.mlflow_observer import MlflowObserver

    spec, mlflow = read_run(path, overrides), MlflowObserver()
    observers = [Screen(), mlflow, GaugeObserver(mlflow, spec.name), Publisher(mlflow)]
    work = Workspace(spec, str(path), observers, run_ids=mlflow)
    try:
        work.check()
        yield work
    finally:
        work.close()


def show_plan(spec: RunSpec, todo: Sequence[str]) -> None:
    """What `--dry-run` prints: the resolved run file and what would be done."""
    print_json({"spec": spec.model_dump(mode="json"), "todo": list(todo)})
