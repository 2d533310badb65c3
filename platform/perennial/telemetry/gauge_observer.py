"""Gauges of the controller: in MLflow, and at the Prometheus endpoint of Ray."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from perennial import corpora
from perennial.controller.observer import RunObserver
from perennial.runs.stage_planner import order_of
from perennial.telemetry.gauges import read_gauges
from perennial.telemetry.prometheus import Exported

if TYPE_CHECKING:
    from perennial.controller.observer import ObservedRun
    from perennial.runs.state import Stage
    from perennial.telemetry.mlflow_observer import MlflowObserver
    from perennial.training.job import Job
    from perennial.training.ray.progress_actor import Progress

LOOK_SECONDS = 60.0
"""pause between two looks at the inbox while a stage trains"""
UNCHANGED_SECONDS = 600.0
"""minimum interval between MLflow updates of gauges that only grew older"""


class GaugeObserver(RunObserver):
    """Shows state, queue and data lag. Only a controller in charge shows them in MLflow."""

    def __init__(self, mlflow: MlflowObserver, lineage: str) -> None:
        self._mlflow = mlflow
        self._exported = Exported(lineage)
        self._looked_at = 0.0
        self._logged_at = 0.0
        self._shown: tuple[str, tuple[str, ...]] | None = None

    def looked(self, work: ObservedRun) -> None:
        """Show the state, the queue and the data's lag as they are now."""
        self._looked_at, now = time.monotonic(), datetime.now(UTC)
        landed_at = {landed.name: landed.landed_at for landed in corpora.list_landed(work.inbox)}
        gauges = read_gauges(work.state, landed_at, now, order_of(work.spec))
        self._exported.controller(gauges)
        shown = (gauges.doing, gauges.queue)
        recent = time.monotonic() - self._logged_at < UNCHANGED_SECONDS
        if not work.in_charge or (shown == self._shown and recent):
            return
        self._shown, self._logged_at = shown, time.monotonic()
        run = self._mlflow.tracker(work).parent_run()
        run.tag("perennial.state", gauges.doing)
        run.tag("perennial.queue", ", ".join(gauges.queue) or "-")
        values = {"length": float(len(gauges.queue)), "data_lag_seconds": gauges.lag_seconds}
        # The step is the time: a queue has no optimizer steps.
        run.log(int(now.timestamp()), {f"queue/{name}": value for name, value in values.items()})

    def stage_trained(self, work: ObservedRun, stage: Stage) -> None:
        """Show how long the oldest data of the stage had waited until it was trained."""
        inbox = corpora.list_landed(work.inbox)
        landed_at = [landed.landed_at for landed in inbox if landed.name in stage.corpora]
        if not landed_at:
            return
        lag = (datetime.now(UTC) - min(landed_at)).total_seconds()
        self._exported.trained(stage.name, lag)
        tracker = self._mlflow.tracker(work)
        for run in (tracker.parent_run(), tracker.child(stage.name, run_id=stage.tracking_run)):
            run.log(stage.last_step, {"queue/landed_to_trained_seconds": lag})

    def source_tried(self, work: ObservedRun, source: str, failures: int) -> None:
        """Show how often a source failed since its last success."""
        self._exported.source(source, failures)

    def job_began(self, work: ObservedRun, job: Job) -> None:
        """Start the job's goodput, restarts and failed checkpoints from zero."""
        self._exported.begin(job)

    def job_progressed(self, work: ObservedRun, job: Job, progress: Progress) -> None:
        """Show a job's steps, and the inbox once in a while: a stage may train for days."""
        self._exported.progress(job, progress)
        if time.monotonic() - self._looked_at > LOOK_SECONDS:
            self.looked(work)
