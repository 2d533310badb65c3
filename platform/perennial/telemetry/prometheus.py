"""Set gauges at Ray's own Prometheus endpoint: every Ray node serves those of its processes.

Ray puts `ray_` before a name. The dashboard in k8s/monitoring, and the alerts of the component
`monitoring` there, query these names.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

    from perennial.telemetry.gauges import Gauges
    from perennial.training.job import Job
    from perennial.training.ray.progress_actor import Progress

METRICS = {
    "perennial_state": "1 for what the controller does now, by `doing`",
    "perennial_queue_length": "corpora that landed and whose stage was not begun",
    "perennial_data_lag_seconds": "age of the oldest data that landed and is not trained",
    "perennial_landed_to_trained_seconds": "time from landing to trained of the last stage",
    "perennial_step": "last finished optimizer step of the trunk or branch",
    "perennial_tokens": "tokens up to that step",
    "perennial_loss": "training loss of that step, nats per token",
    "perennial_eta": "learning rate of that step",
    "perennial_tokens_per_second": "speed of that step",
    "perennial_phase": "1 for the schedule's phase now, by `phase`",
    "perennial_workers": "workers of the group that trains",
    "perennial_restarts": "worker-group starts of this stage beyond the first, in this process",
    "perennial_goodput": "share of this stage's time, in this process, that was spent in steps",
    "perennial_checkpoint_time_seconds": "when this stage's last checkpoint was stored by this "
    "process, or else when the process began the stage; seconds since 1970",
    "perennial_failed_checkpoints": "checkpoints of this stage, in this process, that could not be "
    "stored",
    "perennial_source_failures": "attempts of a source that failed since its last success",
}
_TAGS = {
    "perennial_state": ("lineage", "doing"),
    "perennial_phase": ("lineage", "stage", "phase"),
    "perennial_queue_length": ("lineage",),
    "perennial_data_lag_seconds": ("lineage",),
    "perennial_source_failures": ("lineage", "source"),
}


class Exported:
    """The gauges of this process; it sets none while Ray is not initialised."""

    def __init__(self, lineage: str) -> None:
        self._lineage = lineage
        self._gauges: dict[str, Gauge] = {}
        self._shown: dict[str, dict[str, str]] = {}
        self._began = 0.0
        self._starts = 0
        self._failed_checkpoints = 0
        self._in_steps_seconds = 0.0

    def controller(self, gauges: Gauges) -> None:
        """Set the controller's own gauges."""
        self._only("perennial_state", {"doing": gauges.doing})
        self._set("perennial_queue_length", len(gauges.queue), {})
        self._set("perennial_data_lag_seconds", gauges.lag_seconds, {})

    def trained(self, stage: str, lag_seconds: float) -> None:
        """Set the time from landing to trained of a stage, in seconds."""
        self._set("perennial_landed_to_trained_seconds", lag_seconds, {"stage": stage})

    def source(self, name: str, failures: int) -> None:
        """Set how often a source failed since its last success."""
        self._set("perennial_source_failures", failures, {"source": name})

    def begin(self, job: Job) -> None:
        """Reset what is counted for a job that begins."""
        self._began, self._starts, self._in_steps_seconds = time.monotonic(), 0, 0.0
        self._failed_checkpoints = 0
        self._set("perennial_checkpoint_time_seconds", time.time(), {"stage": job.name})
        self._set("perennial_failed_checkpoints", 0, {"stage": job.name})

    def progress(self, job: Job, progress: Progress) -> None:
        """Set the gauges of a job from what its workers did since the last call."""
        stage, rows = {"stage": job.name}, progress.rows
        self._starts += len(progress.started)
        for _, world_size in progress.started:
            self._set("perennial_workers", world_size, stage)
        self._set("perennial_restarts", max(0, self._starts - 1), stage)
        if progress.saved:
            self._set("perennial_checkpoint_time_seconds", time.time(), stage)
        self._failed_checkpoints += len(progress.failed_saves)
        self._set("perennial_failed_checkpoints", self._failed_checkpoints, stage)
        if not rows:
            return
        last = rows[-1]
        self._in_steps_seconds += sum(r["batch_tokens"] / r["tokens_per_second"] for r in rows)
        elapsed = max(time.monotonic() - self._began, 1e-9)
        self._set("perennial_goodput", min(1.0, self._in_steps_seconds / elapsed), stage)
        self._set("perennial_step", last["step"], stage)
        self._set("perennial_tokens", last["step"] * job.tokens_per_step, stage)
        for name in ("loss", "eta", "tokens_per_second"):
            self._set(f"perennial_{name}", last[name], stage)
        self._only("perennial_phase", {**stage, "phase": last["phase"]})

    def _only(self, name: str, tags: dict[str, str]) -> None:
        """Set a gauge to 1 for these tags, and to 0 for the tags that were shown before."""
        before = self._shown.get(name)
        if before is not None and before != tags:
            self._set(name, 0, before)
        self._shown[name] = tags
        self._set(name, 1, tags)

    def _set(self, name: str, value: float, tags: dict[str, str]) -> None:
        import ray

        if not ray.is_initialized():
            return
        if name not in self._gauges:
            from ray.util.metrics import Gauge

            keys = _TAGS.get(name, ("lineage", "stage"))
            self._gauges[name] = Gauge(name, METRICS[name], tag_keys=keys)
        self._gauges[name].set(value, {"lineage": self._lineage, **tags})
