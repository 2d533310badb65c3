"""How a job's end is reported, and which job gets the workers of the one before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import WorkerGroupError

from perennial.config.training import ModelSpec, TrainingSpec
from perennial.errors import InputError, Terminated, TrainingFailed, TrainingStopped
from perennial.mixture import ReplayRule, stage_mix
from perennial.schedules import ConstantSchedule
from perennial.store import open_store
from perennial.training import launcher
from perennial.training.checkpoint.manifest import MANIFEST, folder_of
from perennial.training.job import Job
from perennial.training.ray.progress_actor import ProgressActor


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
        made = SimpleNamespace(remote=lambda *given: _Methods(actor(*given)))
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
    def fit(_job: Job, _name: str, _environment: dict[str, str], actor: Any) -> None:
        actor.push.remote([{"step": 1}])
        time.sleep(3 * launcher._POLL_SECONDS)  # the driver has seen a row: there is a state
        if requested:  # by Ray, and by Kubernetes: the second does not cut off the save
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        if why == "failed":
            raise WorkerGroupError("some died", {0: RuntimeError("a worker died")})
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


class _Workers:
    """Workers of one `fit` after the other, which train a job by committing its last step.

    trained: the folders of the jobs, by `fit`.
    dies: makes the workers fail while they wait for a job.
    """

    def __init__(self) -> None:
        self.trained: list[list[str]] = []
        self.dies = threading.Event()

    def fit(self, _job: Job, _name: str, _environment: dict[str, str], actor: Any) -> None:
        mine: list[str] = []
        self.trained.append(mine)
        while True:
            if found := actor.read_job.remote():
                job = Job.from_dict(found)
                mine.append(job.folder)
                key = f"{folder_of(job.folder, job.last_step)}/{MANIFEST}"
                open_store(job.store_url).create(key, b"{}")
                actor.end_job.remote()
            elif self.dies.is_set() and actor.let_go.remote() is None:
                raise WorkerGroupError("one died", {0: RuntimeError("a worker died")})
            elif not actor.may_wait.remote():
                return
            time.sleep(0.01)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> _Workers:
    played = _Workers()
    monkeypatch.setattr(launcher, "ray", _Ray())
    monkeypatch.setattr(launcher, "_fit", played.fit)
    monkeypatch.setattr(launcher, "_POLL_SECONDS", 0.01)
    return played


def _stage(folder: Path, number: int, **training: Any) -> Job:
    name = f"{number:02d}-text"
    return replace(_job(folder, **training), name=name, folder=f"checkpoints/{name}")


def test_a_job_begins_in_the_workers_that_wait_and_that_fit_it(
    workers: _Workers, tmp_path: Path
) -> None:
    kept = launcher.KeptWorkers()
    stages = [_stage(tmp_path, number) for number in range(3)]
    stages.append(_stage(tmp_path, 3, micro_batch=2))
    stages.append(replace(_stage(tmp_path, 4, micro_batch=2), vocabulary=1 << 22))
    ends = [kept.run_job(stage, lambda _: None, keep_seconds=600) for stage in stages]
    assert kept.are_waiting
    kept.let_go()
    assert not kept.are_waiting
    assert ends == [folder_of(stage.folder, stage.last_step) for stage in stages]
    first, other_settings, larger = workers.trained
    assert first == [stage.folder for stage in stages[:3]]
    assert other_settings == [stages[3].folder]
    assert larger == [stages[4].folder], "the allocator is set for its logits"


def test_workers_of_their_own_go_after_their_job(workers: _Workers, tmp_path: Path) -> None:
    for number in range(2):
        launcher.run_job(_stage(tmp_path, number), lambda _: None)
        assert not [each for each in threading.enumerate() if each.name == "workers"]
    assert len(workers.trained) == 2


@pytest.mark.parametrize("how", ["save and end", "die", "had trained it"])
def test_a_job_that_is_no_longer_wanted_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    looks: list[int] = []

    def fit(job: Job, _name: str, _environment: dict[str, str], actor: Any) -> None:
        while not actor.push.remote([{"step": 1}]):
            time.sleep(0.01)
        if how == "die":
            raise WorkerGroupError("some died", {0: RuntimeError("a worker died")})
        if how == "had trained it":
            open_store(job.store_url).create(f"{end}/{MANIFEST}", b"{}")

    def meanwhile() -> bool:
        looks.append(1)
        return len(looks) < 3

    job = _job(tmp_path)
    end = folder_of(job.folder, job.last_step)
    monkeypatch.setattr(launcher, "ray", _Ray())
    monkeypatch.setattr(launcher, "_fit", fit)
    monkeypatch.setattr(launcher, "_POLL_SECONDS", 0.01)
    kept = launcher.KeptWorkers()
    ended = kept.run_job(job, lambda _: None, 600, meanwhile)
    assert ended == (end if how == "had trained it" else None)
    assert len(looks) >= 3
    assert not kept.are_waiting, "they were asked to end"


def test_a_request_to_end_outweighs_that_the_job_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fit(_job: Job, _name: str, _environment: dict[str, str], actor: Any) -> None:
        actor.push.remote([{"step": 1}])
        time.sleep(3 * launcher._POLL_SECONDS)  # the driver has seen a row: there is a state
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(launcher, "ray", _Ray())
    monkeypatch.setattr(launcher, "_fit", fit)
    with pytest.raises(Terminated):
        launcher.KeptWorkers().run_job(_job(tmp_path), lambda _: None, 600, lambda: False)


@pytest.mark.parametrize("why", ["time is over", "they died"])
def test_workers_that_are_gone_are_no_failure_of_the_next_job(
    workers: _Workers, tmp_path: Path, why: str
) -> None:
    kept = launcher.KeptWorkers()
    kept.run_job(_stage(tmp_path, 0), lambda _: None, 600 if why == "they died" else 0.05)
    workers.dies.set()
    deadline = time.monotonic() + 60
    while kept.are_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers.dies.clear()
    kept.run_job(_stage(tmp_path, 1), lambda _: None)
    kept.let_go()
    assert [len(jobs) for jobs in workers.trained] == [1, 1]


def test_of_an_offer_and_an_end_of_the_wait_the_first_counts() -> None:
    offered = ProgressActor(keep_seconds=0.0)
    assert offered.offer({"folder": "checkpoints/00-text"})
    assert offered.let_go() == "checkpoints/00-text"
    assert offered.read_job() is not None
    offered.end_job()
    assert not offered.may_wait(), "the time is over"
    assert not offered.offer({"folder": "checkpoints/01-text"})
    assert offered.read_job() is None


def test_the_actors_beside_the_workers_load_neither_torch_nor_ray_train() -> None:
    """Every second of their imports would be one of every start of workers."""
    code = (
        "import sys\n"
        "import perennial.training.ray.controller_guard, perennial.training.ray.progress_actor\n"
        "print(*{'torch', 'transformers', 'pydantic', 'ray.train', 'ray.data'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
