"""Log a run to MLflow and its like: a child run a stage and release, with metrics of its steps."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from perennial import tracking
from perennial.controller.observer import RunIds, RunObserver
from perennial.errors import InputError
from perennial.runs.metrics import lineage_parameters, metrics, parameters, stored_rows

if TYPE_CHECKING:
    from perennial.controller.observer import ObservedRun
    from perennial.runs.events import Tried
    from perennial.runs.state import Stage
    from perennial.tracking import Destination, Receipt, TrackedRun, Tracker
    from perennial.training.job import Job
    from perennial.training.ray.progress_actor import Progress

_ID_SECONDS = 30.0
"""longest wait for a new run's id: the ledger records it once, but training does not need it"""
_CLOSE_SECONDS = 30.0


def tracking_uri(work: ObservedRun) -> str:
    """Return the URI of the MLflow that keeps the run.

    Raises:
        InputError: the run is not kept in MLflow; or its URI must be named, because the store is
            not on this machine.
    """
    if "mlflow" not in work.spec.tracking.to:
        raise InputError(
            work.spec.name, "tracking.to", "this run is not kept in MLflow",
            "add mlflow to it, and use `perennial track`", code="tracking-without-mlflow",
        )  # fmt: skip
    named = work.spec.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return named or tracking.default_uri(work.store)


def prepare_tracking(work: ObservedRun) -> None:
    """Have MLflow's database ready where the store holds it, or an SQLite file elsewhere does.

    Raises:
        InputError: it cannot be made or used.
    """
    tracking.prepare(tracking_uri(work), owned=_is_own(work))


def tracked_page(work: ObservedRun) -> str:
    """Return where the run is within MLflow's pages; "" where MLflow does not have it yet."""
    tracking_spec = work.spec.tracking
    return tracking.page_of_lineage(
        tracking_uri(work),
        tracking_spec.experiment,
        work.spec.name,
        store=work.store_id,
        owned=_is_own(work),
    )


def release_location(work: ObservedRun, folder: str) -> str:
    """Return a release's folder as MLflow shall name it.

    A database inside the store moves with it, and knows no path outside it.
    """
    return folder if _is_own(work) else f"{work.store.url}/{folder}"


def _is_own(work: ObservedRun) -> bool:
    """Return whether MLflow's database is a part of the run's store."""
    is_kept = "mlflow" in work.spec.tracking.to
    return is_kept and tracking_uri(work) == tracking.own_uri(work.store)


def tracking_places(work: ObservedRun) -> str:
    """Return the services that keep the run and where, without passwords."""
    uri = f"MLflow at {tracking_uri(work)}" if "mlflow" in work.spec.tracking.to else ""
    others = [f"{to.name}: {to.place}" for to in _others(work)]
    return tracking.hide_secrets("; ".join(filter(None, [uri, *others])))


def _others(work: ObservedRun) -> list[Destination]:
    """Return the services beside MLflow that the run file names.

    Raises:
        InputError: a package is missing, or there is no local folder for the files.
    """
    spec, made = work.spec.tracking, []
    for service in dict.fromkeys(spec.to):
        tracking.check_package(service)
        if service == "wandb":
            made.append(tracking.wandb_in(spec.experiment, _folder(work), work.store_id))
        elif service == "tensorboard":
            made.append(tracking.tensorboard_in(_events_folder(work)))
    return made


def _folder(work: ObservedRun) -> Path:
    """Return the local folder for files that services read."""
    named = work.spec.tracking.folder
    if named is None and not work.store.is_local:
        raise InputError(
            work.store.url, "tracking.folder", "a store in a bucket cannot hold these files",
            "name a local folder", code="tracking-folder-missing",
        )  # fmt: skip
    if named is not None and "://" in named:
        raise InputError(
            work.spec.name, "tracking.folder", f"{named} is no folder of this machine",
            "name a local folder", code="tracking-folder-missing",
        )  # fmt: skip
    return Path(named or work.store.url)


def _events_folder(work: ObservedRun) -> Path:
    """Return the folder of TensorBoard's files: in one that stores share, one of the store's id."""
    folder = _folder(work) / "tensorboard"
    return folder if work.spec.tracking.folder is None else folder / work.store_id[:8]


def remove_samples(work: ObservedRun) -> None:
    """Remove samples from the local files of W&B and TensorBoard, whether they are kept now."""
    if work.spec.tracking.folder is None and not work.store.is_local:
        return
    state = work.state
    stages = [stage.name for stage in state.started_stages]
    releases = [f"release-{release.name}" for release in state.releases]
    tracking.remove_samples(
        _folder(work),
        _events_folder(work),
        work.spec.name,
        [*state.origins, *stages, *releases],
        work.store_id,
    )


class MlflowObserver(RunObserver, RunIds):
    """Logs what a job does. The tracker never waits for MLflow and never fails the run."""

    def __init__(self) -> None:
        self._tracker: Tracker | None = None
        self._job_run: TrackedRun | None = None

    def tracker(self, work: ObservedRun) -> Tracker:
        """Return the run's tracker, opened on first use: loading MLflow takes seconds."""
        if self._tracker is None:
            self._tracker = tracking.open_tracker(
                tracking_uri(work) if "mlflow" in work.spec.tracking.to else None,
                work.spec.tracking.experiment,
                work.spec.name,
                store=work.store_id,
                owned=_is_own(work),
                others=_others(work),
                params=lineage_parameters(work.spec),
            )
        return self._tracker

    def check(self, work: ObservedRun) -> None:
        """Raise InputError for a URI, a folder or a package that is missing."""
        tracking_places(work)

    def ingest_began(self, work: ObservedRun, corpus: str) -> None:
        """Open the tracker, so that MLflow loads while the corpus is tokenised."""
        self.tracker(work)

    def stage_run_id(self, work: ObservedRun, stage: Stage) -> str:
        """Return the id of the stage's MLflow run, or "" while MLflow is away."""
        run = self.tracker(work).child(stage.name, params=parameters(work.spec, stage))
        return run.wait_id(_ID_SECONDS) or ""

    def release_run_id(self, work: ObservedRun, release: str) -> str:
        """Return the id of the release's MLflow run, or "" while MLflow is away."""
        return self.tracker(work).child(f"release-{release}").wait_id(_ID_SECONDS) or ""

    def job_began(self, work: ObservedRun, job: Job) -> None:
        """Log the steps that an outage of MLflow, or a kill, kept from it; it skips what it has."""
        self.tracker(work).parent_run().resume()
        run = self._job_run = self.tracker(work).child(job.name, run_id=job.tracking_run)
        run.log_rows(stored_rows(work.store, job.folder, job.tokens_per_step), job.tokens_per_step)

    def job_progressed(self, work: ObservedRun, job: Job, progress: Progress) -> None:
        """Log the finished steps and the checkpoints that could not be stored."""
        run = self._job_run
        if run is None:
            return  # it could not be opened; a notice said so
        if progress.failed_saves:
            count = float(len(progress.failed_saves))
            run.log(progress.failed_saves[-1], {"train/failed_checkpoints": count})
        if progress.rows:
            at_ms = int(time.time() * 1000)
            run.log_rows(metrics(job, progress.rows, at_ms), job.tokens_per_step)

    def trial_measured(self, work: ObservedRun, tried: Tried) -> None:
        """Log a trial's measurement, and end its run."""
        run = self.tracker(work).child(tried.trial)
        run.log(tried.step, tried.values)
        run.finish()

    def report_written(self, work: ObservedRun, html: bytes) -> None:
        """Keep the page with the lineage's own run."""
        self.tracker(work).parent_run().artifact(html, "report.html")

    def deliver(self, work: ObservedRun) -> Receipt:
        """Deliver all that was logged, as long as it takes; return what MLflow took or did not."""
        receipt = self.tracker(work).close(_CLOSE_SECONDS, patient=True)
        self._tracker = None
        return receipt

    def closed(self) -> None:
        """Deliver what is left, for a limited time."""
        if self._tracker is not None:
            self._tracker.close(_CLOSE_SECONDS)


def mlflow_of(work: ObservedRun) -> MlflowObserver:
    """Return the observer that keeps the run in MLflow."""
    assert isinstance(work.run_ids, MlflowObserver), "the run was opened without MLflow"
    return work.run_ids
