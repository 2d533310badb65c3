"""Bringing MLflow up to what the store knows: after an outage, or into an empty database.

Every value is in the store before it is in MLflow. What MLflow has already is not written twice,
so all of this may be repeated.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from queue import SimpleQueue
from typing import TYPE_CHECKING

from perennial.controller.observer import RunObserver
from perennial.evaluation.kept_samples import Held, read_samples
from perennial.report.figures.run import pictures
from perennial.report.headline import headline
from perennial.runs import metrics, summary
from perennial.runs.history import read_history
from perennial.runs.ledger import Ledger
from perennial.runs.metrics import stored_rows
from perennial.telemetry.mlflow_observer import release_location

if TYPE_CHECKING:
    from perennial.controller.observer import ObservedRun
    from perennial.evaluation import LossMatrix
    from perennial.runs.entities import StoredOrigin
    from perennial.runs.events import Released, Releasing
    from perennial.runs.state import RunState, Stage
    from perennial.store import Store
    from perennial.telemetry.mlflow_observer import MlflowObserver
    from perennial.tracking import Tracker
    from perennial.tracking.tracker import TrackedRun

_MATRIX = "matrix.json"
_TOLD = 20
"""Stages, and releases, that a description names, at most: the last ones."""


def catch_up(work: ObservedRun, tracker: Tracker) -> list[str]:
    """Log every trained stage, release and the lineage's matrix again; the stages' names."""
    stages = _log_all(work, tracker)
    finish_lineage(work, tracker)
    return stages


def _log_all(work: ObservedRun, tracker: Tracker) -> list[str]:
    # A stage that trains is caught up by the controller that trains it.
    stages = [stage for stage in work.state.stages if stage.name in work.state.ends]
    for stage in stages:
        _stage(work, tracker, stage)
    tokens_per_step = work.spec.tokens_per_step
    for released in work.state.releases:
        branch = stored_rows(work.store, f"branches/{released.name}", tokens_per_step)
        tracker.child(f"release-{released.name}").log_rows(branch, tokens_per_step)
        track_release(work, tracker, work.state.branches[released.name], released)
    if work.state.losses:
        track(work, tracker)
    tracker.mark_complete()
    return [stage.name for stage in stages]


def renew_samples(work: ObservedRun, tracker: Tracker) -> None:
    """Log the samples of stages that left the trunk again, in place of those that were erased."""
    for stage in work.state.abandoned:
        if held := work.state.stage_samples.get(stage.name):
            run = tracker.child(stage.name, stage.tracking_run)
            _log_samples(run, work.store, held)
            run.finish()


def _stage(work: ObservedRun, tracker: Tracker, stage: Stage) -> None:
    run = tracker.child(stage.name, stage.tracking_run, params=metrics.parameters(work.spec, stage))
    tokens_per_step = work.spec.tokens_per_step
    rows = list(stored_rows(work.store, stage.folder, tokens_per_step))
    run.log_rows(rows, tokens_per_step)
    if stage.name in work.state.losses:
        track_stage(work, tracker, stage)
        run.finish(at_ms=rows[-1][1] if rows else None)


def track(work: ObservedRun, tracker: Tracker) -> None:
    """Keep the matrix and the pictures in the store and with the lineage's MLflow run."""
    matrix = summary.matrix(work.state, summary.SHOWN_STAGES)
    length = work.spec.corpora.sequence_length
    history = read_history(work.store, work.state, length)
    drawn = pictures(work.state, length, history)
    files = {f"{name}.png": picture.png() for name, picture in drawn.items()} | {
        "times.json": json.dumps([asdict(time) for time in history.times], indent=1).encode(),
        "matrix.csv": matrix.to_csv().encode(),
        "tokens.json": json.dumps(
            summary.tokens_by_source(work.state, length, summary.SHOWN_STAGES), indent=1
        ).encode(),
        # Without the folder of the store, which may be moved.
        "spec.json": work.spec.model_dump_json(indent=1, exclude={"store"}).encode(),
        # The last one: where it has all losses, the others are of the same state or a later one.
        _MATRIX: _matrix_json(work, matrix),
    }
    run = tracker.parent_run()
    for name, data in files.items():
        work.store.write(f"report/{name}", data)
        run.artifact(data, name)
    for origin in work.state.origins.values():
        _track_origin(work, tracker, origin)
    if matrix.base:
        base = {f"heldout/{c}": loss.nats_per_token for c, loss in matrix.base.items()}
        run.log(0, base, work.spec.tokens_per_step)
    for index in matrix.shown:
        losses = matrix.stages[index][1]
        step = work.state.stages[index].last_step
        heldout = {f"heldout/{c}": loss.nats_per_token for c, loss in losses.items()}
        run.log(step, heldout, work.spec.tokens_per_step)
        forgetting = matrix.mean_forgetting(index)
        if forgetting is not None:
            values = {"forgetting/average": forgetting.nats_per_token}
            if forgetting.measured < forgetting.of and forgetting.stderr is not None:
                values["forgetting/average_stderr"] = forgetting.stderr
            run.log(step, values, work.spec.tokens_per_step)
    run.describe(describe_lineage(work.spec.name, work.state, matrix))


def finish_lineage(work: ObservedRun, tracker: Tracker) -> None:
    """End the lineage's own run unless a stage is being trained; what trains next resumes it."""
    if work.state.losses and all(its.name in work.state.ends for its in work.state.stages):
        tracker.parent_run().finish()


def describe_lineage(name: str, state: RunState, matrix: LossMatrix) -> str:
    """Return what MLflow says of a lineage, in Markdown: what came out, and what is below it."""
    lines = [
        headline(matrix),
        "",
        f"`{name}` is one model that goes on training as corpora arrive. Below it is a run for "
        "each stage, which trains one corpus, and for each release, which is annealed off the "
        "trunk. `report.html` among the artifacts has the pictures (`perennial report`).",
        "",
    ]
    lines += [
        f"- stage {stage.name}: {', '.join(stage.corpora)}" for stage in state.stages[-_TOLD:]
    ]
    lines += [f"- release {release.name}" for release in state.releases[-_TOLD:]]
    return "\n".join(lines)


def _track_origin(work: ObservedRun, tracker: Tracker, origin: StoredOrigin) -> None:
    """Log a stored model's losses, scores and samples with an MLflow run of its own."""
    imported = origin.imported
    params = {"path": imported.path, "parameters": imported.parameters, "copy": imported.folder}
    run = tracker.child(origin.name, params=params)
    values = metrics.heldout_metrics(origin.losses) | metrics.score_metrics(origin.scores)
    run.log(0, values, work.spec.tokens_per_step)
    _log_samples(run, work.store, origin.samples)
    run.finish()


def _matrix_json(work: ObservedRun, matrix: LossMatrix) -> bytes:
    return json.dumps(matrix.to_dict(summary.untrained_nats(work.store)), indent=1).encode()


def is_drawn(work: ObservedRun) -> bool:
    """Return whether the pictures in the store show every loss of the ledger."""
    if not work.state.losses:
        return True
    try:
        there = work.store.read(f"report/{_MATRIX}")
    except FileNotFoundError:
        return False
    return there == _matrix_json(work, summary.matrix(work.state, summary.SHOWN_STAGES))


def track_stage(work: ObservedRun, tracker: Tracker, stage: Stage) -> None:
    """Log a stage's losses, scores and samples with its own MLflow run."""
    state = work.state
    run = tracker.child(stage.name, run_id=stage.tracking_run)
    scores = metrics.score_metrics(state.stage_scores.get(stage.name, []))
    values = metrics.heldout_metrics(state.losses[stage.name]) | scores
    run.log(stage.last_step, values, work.spec.tokens_per_step)
    _log_samples(run, work.store, state.stage_samples.get(stage.name, []))


def _log_samples(run: TrackedRun, store: Store, held: Held) -> None:
    """Log samples, in place of those that were logged before and were erased since."""
    samples = read_samples(store, held)
    if held:
        run.artifact(metrics.sample_text(samples), "samples.txt")
    for name, picture in metrics.sample_pictures(samples).items():
        run.artifact(picture, name)


def track_release(
    work: ObservedRun, tracker: Tracker, claimed: Releasing, released: Released
) -> None:
    """Log a release's losses and samples, and register it."""
    run = tracker.child(f"release-{released.name}")
    run.log(claimed.step + released.steps, metrics.heldout_metrics(released.losses))
    _log_samples(run, work.store, released.samples)
    run.register(
        work.spec.name,
        released.name,
        release_location(work, released.folder),
        aliases=[f"stage-{claimed.stage}", *work.state.aliases_of(released.name)],
        tags={"perennial.stage": claimed.stage, "perennial.step": claimed.step},
    )
    run.finish()


class _StoredRun:
    """A run as an observer may read it, whose state is what the ledger has by now.

    Args:
        work: the run as the controller has it, which goes on meanwhile.
    """

    def __init__(self, work: ObservedRun) -> None:
        self.spec, self.store, self.store_id = work.spec, work.store, work.store_id
        self.inbox = work.inbox
        self.run_ids, self.setbacks, self.log = work.run_ids, work.setbacks, work.log
        self.in_charge = work.in_charge
        self._ledger = Ledger(work.store, work.log)

    @property
    def state(self) -> RunState:
        """Return the run's state as of the last read."""
        return self._ledger.state

    def refresh(self) -> None:
        """Read what was written since."""
        self._ledger.read()


_Log = Callable[["_StoredRun", "Tracker"], object]
"""logs what happened, beside what it changes in the pictures"""


class Publisher(RunObserver):
    """Keeps matrix, pictures and MLflow up to date while a run goes on.

    Drawing takes seconds, for which no stage waits: a thread draws and logs, in the order of what
    happened, from what is in the store. What a kill keeps from it, the next process makes up for.
    """

    def __init__(self, mlflow: MlflowObserver) -> None:
        self._mlflow = mlflow
        self._looked = False
        self._happened: SimpleQueue[tuple[ObservedRun, Tracker, _Log, bool] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._asked = self._done = 0
        self._is_stale = False
        self._noticed: set[type[Exception]] = set()

    def looked(self, work: ObservedRun) -> None:
        """Draw and log, once, what another process measured before it was killed."""
        if not self._looked:
            self._looked = True
            self.found_done(work)

    def found_done(self, work: ObservedRun) -> None:
        """Draw and log what another process measured before it was killed."""
        if not is_drawn(work):
            self._publish(work, _log_all, draws=False)
            finish_lineage(work, self._mlflow.tracker(work))

    def stage_evaluated(self, work: ObservedRun, stage: Stage) -> None:
        """Draw the run again, log the stage and end its MLflow run."""

        def log(run: _StoredRun, tracker: Tracker) -> None:
            track_stage(run, tracker, stage)
            tracker.child(stage.name, run_id=stage.tracking_run).finish()

        self._publish(work, log)
        finish_lineage(work, self._mlflow.tracker(work))

    def stage_gated(self, work: ObservedRun, stage: Stage) -> None:
        """End the MLflow run of the stage that trained behind it, and was abandoned."""
        end, tracker = work.state.ends[stage.name], self._mlflow.tracker(work)
        for left in work.state.abandoned:
            if left.start == end:
                tracker.child(left.name, run_id=left.tracking_run).finish("KILLED")

    def matrix_filled(self, work: ObservedRun) -> None:
        """Draw the run again."""
        self._publish(work, lambda *_: None)

    def release_made(self, work: ObservedRun, claimed: Releasing, released: Released) -> None:
        """Draw the run again, log the release and register it."""
        self._publish(work, lambda run, tracker: track_release(run, tracker, claimed, released))

    def promoted(self, work: ObservedRun, released: Released, alias: str) -> None:
        """Move the alias in the model registry."""
        claimed = work.state.branches[released.name]
        self._publish(work, lambda run, tracker: track_release(run, tracker, claimed, released))

    def release_scored(self, work: ObservedRun, released: Released) -> None:
        """Log the release's scores."""

        def log(run: _StoredRun, tracker: Tracker) -> None:
            step = run.state.branches[released.name].step + released.steps
            child = tracker.child(f"release-{released.name}")
            child.log(step, metrics.score_metrics(run.state.scores[released.name]))
            child.finish()

        self._publish(work, log, draws=False)

    def closed(self) -> None:
        """Draw and log what is left."""
        if self._thread is not None:
            self._happened.put(None)
            self._thread.join()
            self._thread = None

    def _publish(self, work: ObservedRun, log: _Log, *, draws: bool = True) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
            self._thread.start()
        self._asked += 1
        self._happened.put((work, self._mlflow.tracker(work), log, draws))

    def _run(self) -> None:
        run: _StoredRun | None = None
        while (happened := self._happened.get()) is not None:
            work, tracker, log, draws = happened
            run = run or _StoredRun(work)
            self._done += 1
            self._is_stale |= draws
            try:
                self._follow(run, tracker, log)
            except Exception as failed:
                # As where an observer fails: a notice, once for each kind.
                if type(failed) not in self._noticed:
                    self._noticed.add(type(failed))
                    name = type(self).__name__
                    work.log(f"notice: {name} failed ({type(failed).__name__}: {failed})")

    def _follow(self, run: _StoredRun, tracker: Tracker, log: _Log) -> None:
        run.refresh()
        if tracker.incomplete:  # MLflow lacks earlier parts: all is logged
            _log_all(run, tracker)
            self._is_stale = False
            return
        try:
            log(run, tracker)
        finally:
            # Of what happened at nearly the same time, the last draws it all.
            if self._is_stale and self._done == self._asked:
                track(run, tracker)
                self._is_stale = False
