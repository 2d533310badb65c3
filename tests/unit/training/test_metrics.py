"""A metric is one class: measured, combined, in MLflow, in the progress line and on the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from perennial.report.figures.training import metric_curve
from perennial.runs.history import CurvePoint, read_history
from perennial.runs.metrics import of_step
from perennial.runs.state import RunState
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.metrics import (
    METRICS,
    Combine,
    StepFacts,
    StepMetric,
    measured_metrics,
    progress_text,
)
from tests.support.event_factory import walk
from tests.support.gloo import run_on

ROW: dict[str, Any] = {
    "step": 7,
    "loss": 4.5671,
    "eta": 8.9e-4,
    "gradient_norm": 1.25,
    "tokens_per_second": 17869.2,
    "phase": "constant",
    "batch_tokens": 1024,
    "tokens_seen": 6144,
}


class LossPart(StepMetric):
    """Largest part of the loss that a rank has.

    The second paragraph is for developers.
    """

    name = "loss_part"
    combine: ClassVar[Combine] = "max"
    label = "largest part"
    unit = "nats"
    in_progress = True
    figure = True

    def measure(self, facts: StepFacts) -> torch.Tensor:
        return facts.loss


@pytest.fixture
def plugin() -> Iterator[StepMetric]:
    """A metric as a plug-in's entry point brings it."""
    metric = LossPart()
    METRICS.register(metric.name)(metric)
    yield metric
    del METRICS._known[metric.name], METRICS._providers[metric.name]


def test_mlflow_has_the_built_in_metrics_under_their_names() -> None:
    assert of_step(ROW, 1024) == {
        "train/loss": 4.5671,
        "train/eta": 8.9e-4,
        "train/gradient_norm": 1.25,
        "train/tokens_per_second": 17869.2,
        "train/tokens_seen": 6144,
    }
    assert of_step(ROW | {"spikes": 2}, 1024)["train/spikes"] == 2
    older = {key: value for key, value in ROW.items() if key != "tokens_seen"}
    assert of_step(older, 1024)["train/tokens_seen"] == 7 * 1024


def test_the_progress_line_shows_the_loss_and_the_learning_rate() -> None:
    assert progress_text(ROW) == "loss 4.567  lr 8.90e-04"


def test_the_built_in_measured_metrics_come_first_and_in_order(plugin: StepMetric) -> None:
    built_in = ["loss", "gradient_norm", "balance_loss", "busy_seconds", "busy_seconds_slowest"]
    built_in += ["gpu_memory_bytes", "mfu", "padding_tokens"]
    assert list(measured_metrics()) == [*built_in, "loss_part"]


def test_a_plug_in_is_in_mlflow_and_in_the_progress_line(plugin: StepMetric) -> None:
    row = ROW | {plugin.name: 0.75}
    assert of_step(row, 1024)["train/loss_part"] == 0.75
    assert progress_text(row).endswith("  largest part 0.75 nats")
    assert plugin.name not in of_step(ROW, 1024), "a row of before the plug-in"


def test_a_plug_in_with_a_figure_is_drawn_from_the_stored_rows(
    plugin: StepMetric, tmp_path: Path
) -> None:
    state, store = RunState(), open_store(tmp_path)
    walk(state, "a")
    (stage,) = state.stages
    key = checkpoints.folder_of(stage.folder, 2)
    rows = [ROW | {"step": step, plugin.name: step / 10, "seconds": {}} for step in (1, 2)]
    data = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    store.write(f"{key}/metrics.jsonl", data)
    entry = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {"name": stage.name, "step": 2, "phase": "constant", "eta": 1e-3, "schedule": {}}
    manifest |= {"mix": {}, "mix_step": 2, "tokens_seen": {}, "optimizer_steps": 2}
    manifest |= {"world_size": 1, "code_version": "0", "tracking_run": ""}
    manifest |= {"files": {"metrics.jsonl": entry}}
    store.write(f"{key}/manifest.json", json.dumps(manifest).encode())
    curves = read_history(store, state, 1024 // stage.mix.global_batch).curves
    assert curves == {
        plugin.name: (CurvePoint(1024, 0.1, stage.name), CurvePoint(2048, 0.2, stage.name))
    }
    assert metric_curve(curves[plugin.name], plugin.axis, plugin.title).svg("a")
    assert plugin.axis == "largest part (nats)"
    assert plugin.title == "Largest part"
    assert plugin.meaning == "Largest part of the loss that a rank has."


def _reduce(folder: Path) -> None:
    import torch.distributed as dist

    from perennial.training.engine.scalar_allreduce import StepReduction, Votes

    rank = dist.get_rank()
    reduction = StepReduction(torch.device("cpu"))
    assert reduction.finish() is None
    for step in range(2):
        values: dict[str, tuple[Combine, torch.Tensor | float]] = {
            "sum": ("sum", 1.0 + rank),
            "max": ("max", torch.tensor(-1.0 - rank)),
        }
        if step:
            values["mean"] = ("mean", torch.tensor([4.0 * rank]))
        reduction.start(values, Votes(stop=rank == 1, busy=rank == 0 and step == 1))
        reduced = reduction.finish()
        assert reduced is not None
        assert reduced.values == {"sum": 3.0, "max": -1.0} | ({"mean": 2.0} if step else {})
        assert reduced.votes == Votes(stop=True, busy=step == 1)
        assert reduction.finish() is None
    (folder / f"{rank}").touch()


def test_numbers_and_votes_are_combined_as_their_metrics_ask(tmp_path: Path) -> None:
    run_on(2, _reduce, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}
