"""Stages in the same two processes, beside the same stages in processes of their own each."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from perennial.config.run import OptimizerAtJoin
from perennial.config.training import ModelSpec, TrainingSpec
from perennial.mixture import ReplayRule, stage_mix
from perennial.schedules import ConstantSchedule
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.job import Job
from tests.support.gloo import run_on
from tests.support.played_driver import PlayedDriver

STEPS, STAGES = 5, 4


def _stage(place: Path, number: int, optimizer: OptimizerAtJoin, training: dict[str, Any]) -> Job:
    spec = {"global_batch": 4, "micro_batch": 1, "checkpoint_every": "2 steps", "zero_stage": 1}
    config = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return Job(
        store_url=str(place),
        name=f"{number:02d}-text",
        folder=f"checkpoints/{number:02d}-text",
        mix=stage_mix([], {"text": 4 * STEPS}, STEPS, 4, ReplayRule(share=0.0)),
        layouts={},
        first_step=number * STEPS,
        start=_end(number - 1) if number else None,
        schedule=ConstantSchedule(1e-2, 2),
        model=ModelSpec(architecture="gpt_neox", config=config | {"num_attention_heads": 2}),
        training=TrainingSpec.model_validate(spec | training),
        sequence_length=8,
        vocabulary=64,
        end_of_document=0,
        dtype="<u2",
        seed=0,
        optimizer=optimizer,
    )


def _end(number: int) -> str:
    return checkpoints.folder_of(f"checkpoints/{number:02d}-text", (number + 1) * STEPS)


class _Driver(PlayedDriver):
    """Offers jobs one after the other, and notes what is left in the process after each."""

    def __init__(self, jobs: list[Job]) -> None:
        super().__init__()
        self._jobs = [job.to_dict() for job in jobs]
        self.engines: list[weakref.ref[Any]] = []
        self.left: list[dict[str, int]] = []

    def answer(self, name: str) -> Any:
        if name == "read_job":
            return self._jobs[0] if self._jobs else None
        if name == "end_job":
            del self._jobs[0]
            self.left.append(self._count())
        return False

    def _count(self) -> dict[str, int]:
        import torch.distributed as dist

        # Without a collection: what is left until Python's own is left too long.
        engines = sum(engine() is not None for engine in self.engines)
        gc.collect()
        return {
            "engines": engines,
            "tensors": sum(isinstance(each, torch.Tensor) for each in gc.get_objects()),
            "groups": len(dist.distributed_c10d._world.pg_map),
            "threads": len([each for each in threading.enumerate() if each.is_alive()]),
        }


def _batches(
    _store: Any, job: Job, mix_step: int, rank: int, world: int
) -> Iterator[tuple[int, np.ndarray]]:
    for step in range(mix_step, job.mix.steps):
        batch = np.random.default_rng(job.first_step + step).integers(1, 64, (4, 8))
        yield step, batch[rank * 4 // world : (rank + 1) * 4 // world]


def _train(place: Path, jobs: list[Job]) -> None:
    import torch.distributed as dist

    from perennial.training import job_queue, worker
    from perennial.training.ray import progress

    driver = _Driver(jobs)
    patched: Any = worker
    build = patched.engine_at

    def engine_at(*arguments: Any) -> Any:
        engine = build(*arguments)
        driver.engines.append(weakref.ref(engine))
        return engine

    patched.batches_from, patched.engine_at = _batches, engine_at
    patched.is_ending = vars(job_queue)["is_ending"] = lambda: False
    rays: Any = vars(progress)["ray"]
    rays.wait, rays.get = (lambda answers, **_: (answers, [])), lambda answers: answers
    worker.train({"driver": driver})
    if dist.get_rank() == 0:
        (place / "left.json").write_text(json.dumps(driver.left))


def _state(place: Path, number: int) -> dict[str, torch.Tensor]:
    """Weights and optimizer state at the end of a stage."""
    store, end = open_store(place), _end(number)
    manifest = checkpoints.read_manifest(store, end)
    state: dict[str, torch.Tensor] = {}
    for name in manifest.files:
        if name.endswith(".safetensors"):
            its = load_file(Path(store.url) / manifest.key_of(end, name))
            state |= {f"{name}:{key}": tensor for key, tensor in its.items()}
    return state


@pytest.mark.long
@pytest.mark.parametrize(
    ("optimizer", "training"),
    [
        pytest.param("reset", {}, id="reset"),
        pytest.param("keep", {}, id="keep"),
        pytest.param("keep-second-moment", {}, id="second-moment"),
        ("keep", {"precision": "bf16", "zero_stage": 0}),
        ("keep", {"precision": "bf16", "zero_stage": 2}),
        ("keep", {"precision": "bf16", "zero_stage": 3}),
        ("keep", {"workers": 2, "tensor_parallel": 2}),
    ],
)
def test_i9_stages_in_the_same_processes_are_bitwise_those_in_new_ones(
    tmp_path: Path, optimizer: OptimizerAtJoin, training: dict[str, Any]
) -> None:
    warm, cold = tmp_path / "warm", tmp_path / "cold"
    jobs = {
        place: [_stage(place, number, optimizer, training) for number in range(STAGES)]
        for place in (warm, cold)
    }
    for place in (warm, cold):
        place.mkdir()
    run_on(2, _train, warm, jobs[warm])
    for job in jobs[cold]:
        run_on(2, _train, cold, [job])
    for number in range(STAGES):
        expected, state = _state(cold, number), _state(warm, number)
        assert set(state) == set(expected)
        assert any("optimizer" in name for name in state)
        for name, tensor in expected.items():
            assert torch.equal(state[name], tensor), (number, name)
        folder = jobs[warm][number].folder
        numbers = [
            [{key: row[key] for key in ("step", "loss", "gradient_norm", "eta")} for row in rows]
            for _, rows in (checkpoints.kept_rows(open_store(at), folder) for at in (warm, cold))
        ]
        assert numbers[0] == numbers[1]
        assert len(numbers[0]) == STEPS
    left = json.loads((warm / "left.json").read_text())
    assert len(left) == STAGES
    assert [each["engines"] for each in left] == [0] * STAGES
    # What libraries load lazily comes with the first two; from then on nothing more.
    assert left[-1] == left[-2]
