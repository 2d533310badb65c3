"""Services that a run is tracked in: MLflow, Weights & Biases, TensorBoard, behind one protocol."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from perennial.errors import InputError
from perennial.tracking import failures
from perennial.tracking.failures import Failure

if TYPE_CHECKING:
    from perennial.tracking.outbox import Found, MetricPoint, Other, Pending

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb", "tensorboard": "tensorboardX"}
"""what a service is reached through, by its name in `tracking.to`"""


class TrackedRuns(Protocol):
    """The runs of one service. Every method may block, and raises what the service raises."""

    def attach(self, run: Pending, parent_id: str | None) -> Found:
        """Continue the run that the service has under this key, or make it."""

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Write values."""

    def put(self, run_id: str, item: Other) -> None:
        """Write a file, tag, registration or the end."""

    def complete(self, run_id: str) -> None:
        """Record that the service has everything that the store knows."""

    def refused(self, error: Exception) -> bool:
        """Return whether the service understood the call and will never accept it."""

    def close(self) -> None:
        """Write what is still in memory."""


class Destination(NamedTuple):
    """A service, before anything of it is imported.

    Attributes:
        name: for users.
        place: address, project or folder.
        connect: returns its runs; the argument asks to examine its database thoroughly.
        explain: what is wrong, given what was raised and the name of the file that was sent.
        owned: the database is part of one run's store.
    """

    name: str
    place: str
    connect: Callable[[bool], TrackedRuns]
    explain: Callable[[Exception, str], Failure]
    owned: bool = False


def check_package(service: str) -> None:
    """Refuse a service whose package is not installed.

    Raises:
        InputError: says what to install.
    """
    if find_spec(PACKAGES[service]) is None:
        raise InputError(
            "tracking", "tracking.to", f"{service} needs the package {PACKAGES[service]}",
            f"pip install 'perennial[{service}]', or leave it out", code="tracking-package-missing",
        )  # fmt: skip


def mlflow_at(uri: str, experiment: str, owned: bool, store: str) -> Destination:
    """Return an experiment of an MLflow, for the store of an id."""

    def connect(thorough: bool) -> TrackedRuns:
        # It logs every table that it creates, and failures with their traceback; the user gets one
        # line of them from the delivery.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        from perennial.tracking.mlflow_runs import MlflowRuns, Target

        return MlflowRuns(Target(uri, experiment, owned, store), thorough)

    return Destination("MLflow", uri, connect, failures.explain, owned)


def wandb_in(project: str, folder: Path, store: str = "") -> Destination:
    """Return a project of Weights & Biases, whose files are written below a folder first.

    Args:
        project: its name.
        folder: of the files.
        store: id of the store whose runs they are.
    """

    def connect(_: bool) -> TrackedRuns:
        from perennial.tracking.wandb_runs import WandbRuns

        return WandbRuns(project, folder, store)

    return Destination("W&B", f"project {project}", connect, partial(_explain, "W&B"))


def tensorboard_in(folder: Path) -> Destination:
    """Return event files of TensorBoard below a folder."""

    def connect(_: bool) -> TrackedRuns:
        from perennial.tracking.tensorboard_runs import TensorBoardRuns

        return TensorBoardRuns(folder)

    return Destination("TensorBoard", str(folder), connect, partial(_explain, "TensorBoard"))


def _explain(name: str, error: Exception, _: str) -> Failure:
    if isinstance(error, InputError):
        return Failure(f"{error.where}: {error.problem}", error.remedy, "", lasting=True)
    return Failure(f"{name} failed", "", failures.describe_error(error), lasting=False)
