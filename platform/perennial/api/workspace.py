"""Open a run for a verb that acts or draws: checked, and followed by its observers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.controller.observer import RunObserver
from perennial.report.publish import Publisher
from perennial.telemetry.gauge_observer import GaugeObserver
from perennial.telemetry.mlflow_observer import MlflowObserver
from perennial.telemetry.notify_observer import NotifyObserver


@contextmanager
def checked_workspace(
    spec: RunSpec,
    where: str,
    observers: Sequence[RunObserver],
    *,
    acts: bool,
    verb: str,
    take_over: bool,
) -> Iterator[Workspace]:
    """Yield a checked workspace that MLflow, gauges and pictures follow, and close it.

    Args:
        spec: the resolved run file.
        where: path of the run file, for messages.
        observers: follow the controller first.
        acts: the verb needs this machine, a store that can be written and what the run file names;
            another one may read a run where none of them is.
        verb: what is done, for those who find the run held.
        take_over: take the leases of processes that live.
    """
    mlflow = MlflowObserver()
    # What the publisher has left to log comes before MLflow is closed.
    followers = [*observers, Publisher(mlflow), mlflow, GaugeObserver(mlflow, spec.name)]
    if spec.notify.has_a_way:
        followers.append(NotifyObserver(spec.notify))
    work = Workspace(spec, where, followers, run_ids=mlflow, verb=verb, take_over=take_over)
    try:
        if acts:
            work.check()
        else:
            work.check_run()
        yield work
    finally:
        work.close()
