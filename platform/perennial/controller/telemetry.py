"""The controller's gauges in MLflow, on the lineage's own run, and at Ray's Prometheus endpoint."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from perennial import corpora
from perennial.controller.gauges import read_gauges
from perennial.controller.prometheus import Exported
from perennial.runs.stage_planner import order_of

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.runs.state import Stage
    from perennial.training.job import Job
    from perennial.training.launcher import Progress

LOOK_SECONDS = 60.0
"""pause between two looks at the inbox while a stage trains"""
AGAIN_SECONDS = 600.0
"""MLflow hears of what did not change, but grows older, no more often"""


class Instruments:
    """Shows how a run stands. Only a controller in charge shows it in MLflow."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self._exported = Exported(work.spec.name)
        self._looked = 0.0
        self._logged = 0.0
        self._told: tuple[str, tuple[str, ...]] | None = None

    def look(self) -> None:
        """Show the state, the queue and the data's lag as they are now."""
        self._looked = time.monotonic()
        work, now = self._work, datetime.now(UTC)
        landed_at = {landed.name: landed.landed_at for landed in corpora.list_landed(work.inbox)}
        gauges = read_gauges(work.state, landed_at, now, order_of(work.spec))
        self._exported.controller(gauges)
        told = (gauges.doing, gauges.queue)
        if not work.in_charge or (told == self._told and self._young()):
            return
        self._told, self._logged = told, time.monotonic()
        run = work.tracker.parent_run()
        run.tag("perennial.state", gauges.doing)
        run.tag("perennial.queue", ", ".join(gauges.queue) or "-")
        values = {"length": float(len(gauges.queue)), "data_lag_seconds": gauges.lag_seconds}
        # The step is the time: queues know no optimizer steps.
        run.log(int(now.timestamp()), {f"queue/{name}": value for name, value in values.items()})

    def trained(self, stage: Stage) -> None:
        """Show how long the oldest data of the stage that was just trained had waited."""
        inbox = corpora.list_landed(self._work.inbox)
        landed_at = [each.landed_at for each in inbox if each.name in stage.corpora]
        if not landed_at:
            return
        lag = (datetime.now(UTC) - min(landed_at)).total_seconds()
        self._exported.trained(stage.name, lag)
        values = {"queue/landed_to_trained_seconds": lag}
        for run in (
            self._work.tracker.parent_run(),
            self._work.tracker.child(stage.name, run_id=stage.tracking_run),
        ):
            run.log(stage.last_step, values)

    def begin(self) -> None:
        """A job begins."""
        self._exported.begin()

    def progress(self, job: Job, progress: Progress) -> None:
        """News of a job; a look at the inbox, which may go wrong, once in a while."""
        self._exported.progress(job, progress.started, progress.rows)
        if time.monotonic() - self._looked > LOOK_SECONDS:
            try:
                self.look()
            except OSError as unreachable:
                self._looked = time.monotonic()
                self._work.narrator.say(f"the inbox cannot be looked at: {unreachable}")

    def _young(self) -> bool:
        return time.monotonic() - self._logged < AGAIN_SECONDS
