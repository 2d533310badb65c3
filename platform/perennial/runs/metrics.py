"""Build MLflow's metrics and parameters of steps, stages and releases."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from perennial.training.checkpoint.manifest import kept_rows
from perennial.training.engine.step_timer import shares
from perennial.training.metrics import metrics_in

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.evaluation.loss import HeldoutLoss
    from perennial.evaluation.samples import Sample
    from perennial.evaluation.scores import Score
    from perennial.runs.state import Stage
    from perennial.store import Store
    from perennial.training.job import Job

Points = tuple[int, int, dict[str, float]]


def metrics(job: Job, rows: Sequence[dict[str, Any]], at_ms: int) -> list[Points]:
    """Build MLflow's metrics of finished steps, and of the last one the shares of time.

    The shares are over all rows that arrived together: for every step they would be most of what
    MLflow has to store.

    Args:
        job: the job.
        rows: its finished steps since the last call, at least one.
        at_ms: time of the metrics, in milliseconds since 1970.

    Returns:
        Triples of step, time and values by metric name.
    """
    points = [point for row in rows for point in of_row(row, at_ms, job.tokens_per_step)]
    last, _, values = points[-1]
    parts = shares([row["seconds"] for row in rows])
    points[-1] = (last, at_ms, values | {f"time/{part}": share for part, share in parts.items()})
    return points


def of_row(row: dict[str, Any], at_ms: int, tokens_per_step: int) -> Iterator[Points]:
    """Yield MLflow's metrics of a step, and of the moment before it where that was measured."""
    if "heldout_before" in row:
        yield row["step"] - 1, at_ms, _join(row["heldout_before"])
    yield row["step"], at_ms, of_step(row, tokens_per_step)


def of_step(row: dict[str, Any], tokens_per_step: int) -> dict[str, float]:
    """Build MLflow's metrics of one finished step."""
    # Rows of versions before 0.2 do not count the tokens, and had no step left out.
    row = {"tokens_seen": row["step"] * tokens_per_step, **row}
    values = {metric.mlflow_key: value for metric, value in metrics_in(row)}
    return values | _join(row.get("heldout", {}))


def _join(losses: Mapping[str, float]) -> dict[str, float]:
    """Name held-out losses of a stage's first steps apart from `heldout/<corpus>` of its end."""
    return {f"join/heldout_{side}": loss for side, loss in losses.items()}


def stored_rows(store: Store, folder: str, tokens_per_step: int) -> Iterator[Points]:
    """Yield MLflow's metrics of the steps in the last committed checkpoint, in order.

    Their times are computed from the checkpoint's own time and from their speeds.

    Args:
        store: the run's store.
        folder: key of the folder of the job's checkpoints.
        tokens_per_step: tokens of one optimizer step.
    """
    key, rows = kept_rows(store, folder)
    if key is None:
        return
    at_ms = store.info(key).modified.timestamp() * 1000 - sum(map(_milliseconds, rows))
    for row in rows:
        at_ms += _milliseconds(row)
        yield from of_row(row, int(at_ms), tokens_per_step)


def _milliseconds(row: dict[str, Any]) -> float:
    return 1000.0 * float(row["batch_tokens"]) / max(float(row["tokens_per_second"]), 1e-9)


def sample_text(samples: Sequence[Sample]) -> bytes:
    """Return samples as plain text."""
    lines = [f"[{s.corpus or 'prompt'}] {s.prompt} ...{s.text}{_drawn_text(s)}" for s in samples]
    return "\n\n".join(lines).encode()


def _drawn_text(sample: Sample) -> str:
    its = sample.rendering
    if its is None:
        return ""
    if its.problem:
        return f"\n(not drawn: {its.by}: {its.problem})"
    return f"\n{its.text}\n(drawn by {its.by})".replace("\n\n", "\n")


def sample_pictures(samples: Sequence[Sample]) -> dict[str, bytes]:
    """Return the pictures that a user's function made of samples, by the name of their file."""
    drawn = [s for s in samples if s.rendering and s.rendering.png]
    return {
        f"sample-{number}-{sample.corpus}.png": base64.b64decode(sample.rendering.png)
        for number, sample in enumerate(drawn, start=1)
        if sample.rendering
    }


def score_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """Build MLflow's metrics of lm-eval scores, with their standard errors."""
    metrics_by_name: dict[str, float] = {}
    for score in scores:
        if "value" in score:
            key = f"tasks/{score['task']}/{score['metric']}"
            values = {key: score["value"], f"{key}_stderr": score["stderr"]}
            metrics_by_name |= {name: v for name, v in values.items() if v is not None}
    return metrics_by_name


def heldout_metrics(losses: Mapping[str, HeldoutLoss]) -> dict[str, float]:
    """Build MLflow's metrics of held-out losses."""
    nats = {f"heldout/{name}": loss.nats_per_token for name, loss in losses.items()}
    bits = {f"heldout_bits_per_byte/{n}": loss.bits_per_byte for n, loss in losses.items()}
    return nats | {name: value for name, value in bits.items() if value is not None}


def lineage_parameters(spec: RunSpec) -> dict[str, object]:
    """Build MLflow's parameters of a whole lineage: the settings that no stage may change."""
    model = {f"model.{name}": value for name, value in sorted(spec.model.config.items())}
    return {
        "model": spec.model.architecture or PurePath(spec.model.path or "").name,
        **model,
        "tokenizer": spec.tokenizer.vocabulary or PurePath(spec.tokenizer.path or "").name,
        "sequence_length": spec.corpora.sequence_length,
        "global_batch": spec.training.global_batch,
        "schedule.kind": spec.schedule.kind,
        "replay": spec.replay.share,
        "seed": spec.seed,
    }


def parameters(spec: RunSpec, stage: Stage) -> dict[str, object]:
    """Build MLflow's parameters of a stage: the settings that determine its result."""
    return {
        "corpus": ", ".join(stage.corpora),
        "first_step": stage.first_step,
        "steps": stage.mix.steps,
        "global_batch": stage.mix.global_batch,
        "sequence_length": spec.corpora.sequence_length,
        "replay": stage.mix.replay.share,
        "optimizer": stage.optimizer,
        "start": stage.start or spec.model.describe_start(),
        **{f"schedule.{name}": value for name, value in stage.schedule.items()},
    }
