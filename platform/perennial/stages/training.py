"""Running one job with its news going to the person and to MLflow."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perennial.stages.ledger import now
from perennial.stages.starts import Start, note_start
from perennial.stages.workspace import Superseded, Workspace
from perennial.training.checkpoint import METRICS, folder_of, latest_step, read_manifest
from perennial.training.endings import TrainingFailed
from perennial.training.meter import shares

if TYPE_CHECKING:
    from perennial.store import Store
    from perennial.training.job import Job
    from perennial.training.trainer import Progress


def train(work: Workspace, job: Job) -> str:
    """Train a job to its end; the key of its last checkpoint.

    Raises Superseded when somebody else took the job over meanwhile.
    """
    from perennial.training.trainer import run_job

    run = work.tracker.child(job.name, run_id=job.tracking_run)

    def on_progress(progress: Progress) -> None:
        work.narrator.news(job, progress)
        work.instruments.progress(job, progress)
        for step, workers in progress.started:
            note_start(work.store, job.folder, Start(now(), step, workers))
        for line in progress.notices:
            work.narrator.say(f"{job.name}: {line}")
        if progress.failed_saves:
            count = float(len(progress.failed_saves))
            run.log(progress.failed_saves[-1], {"train/failed_checkpoints": count})
        for row in progress.rows:
            if "spike" in row:
                work.narrator.say(f"{job.name}: step {row['step']}: {row['spike']}; ignored")
        for told in progress.skipped:
            work.narrator.say(f"{job.name}: {told}")
        if progress.rows:
            at_ms = int(time.time() * 1000)
            run.log_rows(metrics(job, progress.rows, at_ms), job.tokens_per_step)

    # What an MLflow that was down, or a kill, kept from it; it leaves out what it has.
    run.log_rows(stored_rows(work.store, job.folder, job.tokens_per_step), job.tokens_per_step)
    work.instruments.begin()
    work.narrator.begin(job)
    try:
        checkpoint = run_job(job, on_progress)
    except TrainingFailed:
        if job.may_commit(work.store):
            raise
        raise Superseded(f"another process took {job.name} over; this one stops") from None
    work.narrator.end(job)
    return checkpoint


Points = tuple[int, int, dict[str, float]]
_TOLD = ("loss", "eta", "gradient_norm", "tokens_per_second", "spikes")


def metrics(job: Job, rows: Sequence[dict[str, Any]], at_ms: int) -> list[Points]:
    """MLflow's metrics of finished steps: each step's, and at the last one the shares of time.

    The shares are over all the rows that arrived together: of single steps they would be most of
    what MLflow has to store.
    """
    points = [point for row in rows for point in of_row(row, at_ms, job.tokens_per_step)]
    last, _, values = points[-1]
    parts = shares([row["seconds"] for row in rows])
    points[-1] = (last, at_ms, values | {f"time/{part}": share for part, share in parts.items()})
    return points


def of_row(row: dict[str, Any], at_ms: int, tokens_per_step: int) -> Iterator[Points]:
    """MLflow's metrics of a finished step, and of the moment before it where that was measured."""
    if "heldout_before" in row:
        yield row["step"] - 1, at_ms, _join(row["heldout_before"])
    yield row["step"], at_ms, of_step(row, tokens_per_step)


def of_step(row: dict[str, Any], tokens_per_step: int) -> dict[str, float]:
    """MLflow's metrics of one finished step."""
    told = {f"train/{name}": row[name] for name in _TOLD if name in row}
    seen = row.get("tokens_seen", row["step"] * tokens_per_step)
    return told | {"train/tokens_seen": seen} | _join(row.get("heldout", {}))


def _join(losses: Mapping[str, float]) -> dict[str, float]:
    """Held-out losses of a stage's first steps, apart from `heldout/<corpus>` of its end."""
    return {f"join/heldout_{side}": loss for side, loss in losses.items()}


def stored_rows(store: Store, folder: str, tokens_per_step: int) -> Iterator[Points]:
    """The finished steps that the last committed checkpoint below `folder` tells, in order.

    Their times follow from the checkpoint's own and from their speeds.
    """
    key, rows = kept_rows(store, folder)
    if key is None:
        return
    at_ms = store.info(key).modified.timestamp() * 1000 - sum(map(_milliseconds, rows))
    for row in rows:
        at_ms += _milliseconds(row)
        yield from of_row(row, int(at_ms), tokens_per_step)


def kept_rows(store: Store, folder: str) -> tuple[str | None, list[dict[str, Any]]]:
    """Key and rows of the finished steps of the last committed checkpoint below `folder`."""
    step = latest_step(store, folder)
    if step is None:
        return None, []
    checkpoint = folder_of(folder, step)
    key = read_manifest(store, checkpoint).key_of(checkpoint, METRICS)
    lines = [json.loads(line) for line in store.read(key).splitlines()]
    return key, [row for row in lines if "loss" in row]  # and not a batch that was left out


def _milliseconds(row: dict[str, Any]) -> float:
    return 1000.0 * float(row["batch_tokens"]) / max(float(row["tokens_per_second"]), 1e-9)
