"""How a job's end is reported: a request to end outweighs whatever else happened meanwhile."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perennial.config.training import ModelSpec, TrainingSpec
from perennial.errors import InputError, Terminated, TrainingFailed, TrainingStopped
from perennial.mixture import ReplayRule, stage_mix
from perennial.schedules import ConstantSchedule
from perennial.store import open_store
from perennial.training import launcher
from perennial.training.job import Job


class _Methods:
    """An actor's methods as its callers see them, called at once."""

    def __init__(self, instance: Any) -> None:
        self._instance = instance

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._instance, name))


class _Ray:
    """Ray, as far as `run_job` uses it, in this process."""

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "0" * 56)

    def remote(self, actor: type) -> Any:
        made = SimpleNamespace(remote=lambda: _Methods(actor()))
        return SimpleNamespace(options=lambda **_: made)

    def get(self, value: Any) -> Any:
        return value

    def kill(self, _: Any) -> None:
        pass


def _job(folder: Path, **training: Any) -> Job:
    return Job(
        store_url=str(folder),
        name="00-text",
        folder="checkpoints/00-text",
        mix=stage_mix([], {"text": 100}, 40, 2, ReplayRule(share=0.0)),
        layouts={},
        first_step=0,
        start=None,
        schedule=ConstantSchedule(1e-3, 10),
        model=ModelSpec(architecture="gpt_neox"),
        training=TrainingSpec.model_validate({"global_batch": 2, "micro_batch": 1} | training),
        sequence_length=8,
        vocabulary=64,
        end_of_document=0,
        dtype="<u2",
        seed=0,
    )


@pytest.mark.parametrize("requested", [True, False])
@pytest.mark.parametrize("why", ["failed", "stopped", "ended"])
def test_a_request_to_end_outweighs_how_the_workers_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, requested: bool, why: str
) -> None:
    def fit(_job: Job, actor: Any) -> None:
        actor.push.remote([{"step": 1}])
        time.sleep(3 * launcher._POLL_SECONDS)  # the driver has seen a row: there is a state
        if requested:  # by Ray, and by Kubernetes: the second does not cut off the save
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        if why == "failed":
            raise TrainingFailed("the workers died")
        if why == "stopped":
            actor.stopped.remote("the loss is nan")

    monkeypatch.setattr(launcher, "ray", _Ray())
    monkeypatch.setattr(launcher, "_fit", fit)
    before = signal.getsignal(signal.SIGTERM)
    expected: type[BaseException] = TrainingStopped if why == "stopped" else TrainingFailed
    with pytest.raises(Terminated if requested else expected) as ended:
        launcher.run_job(_job(tmp_path), lambda _: None)
    assert requested or type(ended.value) is expected
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_state_of_another_optimizer_is_refused_before_a_cluster_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launcher, "ray", None)
    manifest = (
        '{"name": "00-text", "step": 5, "phase": "constant", "eta": 1e-3, "schedule": {}, '
        '"mix": {}, "mix_step": 5, "tokens_seen": {}, "optimizer_steps": 5, "world_size": 1, '
        '"code_version": "0.1.0", "tracking_run": "", "files": {}}'
    )
    store = open_store(tmp_path)
    store.write("checkpoints/00-text/00000005/manifest.json", manifest.encode())
    with pytest.raises(InputError) as refused:
        launcher.run_job(_job(tmp_path, optimizer={"kind": "ademamix"}), lambda _: None)
    assert refused.value.code == "optimizer-changed"
    assert "adamw" in refused.value.problem
