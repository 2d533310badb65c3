"""The training loop on two processes, with its data and its driver played: no cluster is needed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from perennial.config.training import ModelSpec, TrainingSpec
from perennial.corpora.growth.extend import extend_from_sample
from perennial.corpora.tokenizer import build_tokenizer, commit_tokenizer
from perennial.mixture import ReplayRule, stage_mix
from perennial.schedules import ConstantSchedule
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.job import Job
from tests.support.gloo import run_on
from tests.support.played_driver import PlayedDriver
from tests.support.small_tokenizers import byte_level_json

FOLDER = "checkpoints/00-text"
STEPS = 12
ETA = 1e-2
DIVIDED = {"workers": 2, "tensor_parallel": 2}
"""two workers that have one model"""
ADEMAMIX = {"kind": "ademamix", "alpha_warmup": 4, "beta3_warmup": 8}
MUON: dict[str, Any] = {"optimizer": {"kind": "muon"}, "zero_stage": 0}


def _job(store: Store, **training: Any) -> Job:
    spec = TrainingSpec.model_validate(
        {"global_batch": 4, "micro_batch": 1, "checkpoint_every": "4 steps", "zero_stage": 1}
        | training
    )
    config = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return Job(
        store_url=store.url,
        name="00-text",
        folder=FOLDER,
        mix=stage_mix([], {"text": 4 * STEPS}, STEPS, 4, ReplayRule(share=0.0)),
        layouts={},
        first_step=0,
        start=None,
        schedule=ConstantSchedule(ETA, 2),
        model=ModelSpec(architecture="gpt_neox", config=config | {"num_attention_heads": 2}),
        training=spec,
        sequence_length=8,
        vocabulary=64,
        end_of_document=0,
        dtype="<u2",
        seed=0,
    )


def _batches(
    _store: Store, job: Job, mix_step: int, rank: int, world: int
) -> Iterator[tuple[int, np.ndarray]]:
    for step in range(mix_step, job.mix.steps):
        batch = np.random.default_rng(job.first_step + step).integers(1, 64, (4, 8))
        if job.padded:
            batch[::2, 4:] = job.end_of_document
        yield step, batch[rank * 4 // world : (rank + 1) * 4 // world]


def _train(place: Path, until: int | None, training: dict[str, Any], /, **changes: Any) -> None:
    import torch.distributed as dist

    from perennial.training import worker
    from perennial.training.ray import progress

    driver: Any = PlayedDriver()
    patched: Any = worker
    patched.batches_from, patched.is_ending = _batches, lambda: False
    rays: Any = vars(progress)["ray"]
    rays.wait, rays.get = (lambda answers, **_: (answers, [])), lambda answers: answers
    store = open_store(place)
    job = dataclasses.replace(_job(store, **training), until=until, **changes)
    worker._Worker(job, store, driver).run()
    dist.barrier()
    if dist.get_rank() == 0:
        (place / "calls.json").write_text(json.dumps(driver.calls))


def _weights(store: Store) -> dict[str, torch.Tensor]:
    at = checkpoints.folder_of(FOLDER, STEPS)
    key = checkpoints.read_manifest(store, at).key_of(at, "model.safetensors")
    weights: dict[str, torch.Tensor] = load_file(Path(store.url) / key)
    return weights


@pytest.mark.parametrize(
    "training",
    [
        pytest.param({}, id="adamw"),
        pytest.param({"optimizer": ADEMAMIX}, id="ademamix", marks=pytest.mark.long),
        pytest.param(MUON, id="muon"),
        pytest.param(MUON | {"precision": "bf16"}, id="muon-bf16", marks=pytest.mark.long),
    ],
)
def test_i9_a_resumed_job_is_bitwise_the_straight_one(
    tmp_path: Path, training: dict[str, Any]
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    for folder, ends in ((straight, (None,)), (resumed, (6, None))):
        folder.mkdir()
        for until in ends:
            run_on(2, _train, folder, until, training)
    for name, tensor in _weights(open_store(straight)).items():
        assert torch.equal(tensor, _weights(open_store(resumed))[name]), name
    key, rows = checkpoints.kept_rows(open_store(resumed), FOLDER)
    assert key is not None
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    _, expected = checkpoints.kept_rows(open_store(straight), FOLDER)
    for name in ("loss", "gradient_norm", "eta", "tokens_seen"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    calls = json.loads((resumed / "calls.json").read_text())
    assert ["started", [6, 2]] in calls
    assert "stopped" not in [name for name, _ in calls]
    manifest = checkpoints.read_manifest(open_store(resumed), checkpoints.folder_of(FOLDER, STEPS))
    assert manifest.optimizer == training.get("optimizer", {}).get("kind", "adamw")


@pytest.mark.long
@pytest.mark.parametrize("padded", [False, True])
def test_i9_a_job_goes_on_where_other_workers_divide_the_model(
    tmp_path: Path, padded: bool
) -> None:
    """Two workers have one model; cut, they end with the same bits, and 2 x 2 or 2 x 1 alike."""
    divided = DIVIDED | {"zero_stage": 2}
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    straight.mkdir()
    cut.mkdir()
    run_on(2, partial(_train, padded=padded), straight, None, divided)
    run_on(2, partial(_train, padded=padded), cut, 6, divided)
    elsewhere = {
        "resumed": (2, divided),
        "larger": (4, {"workers": 4, "tensor_parallel": 2, "zero_stage": 0}),
        "whole": (2, {"workers": 2, "zero_stage": 1}),
    }
    _, expected = checkpoints.kept_rows(open_store(straight), FOLDER)
    for name, (world, training) in elsewhere.items():
        shutil.copytree(cut, tmp_path / name)
        run_on(world, partial(_train, padded=padded), tmp_path / name, None, training)
        _, rows = checkpoints.kept_rows(open_store(tmp_path / name), FOLDER)
        assert len(rows) == STEPS
        for row, right in zip(rows, expected, strict=True):
            assert row["loss"] == pytest.approx(right["loss"], abs=1e-4)
            assert row["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=1e-3)
            assert row.get("padding_tokens") == right.get("padding_tokens")
        for weight, tensor in _weights(open_store(straight)).items():
            other = _weights(open_store(tmp_path / name))[weight]
            if name == "resumed":
                assert torch.equal(tensor, other), weight
            assert torch.allclose(tensor, other, atol=1e-4), weight


CUT = 6
SECOND = "checkpoints/01-text"


def _join(folder: Path, optimizer: str, eta: float, training: dict[str, Any]) -> None:
    """Train the second half as a stage of its own, which starts from the end of the first."""
    steps = STEPS - CUT
    _train(
        folder,
        None,
        training,
        folder=SECOND,
        name="01-text",
        first_step=CUT,
        start=checkpoints.folder_of(FOLDER, CUT),
        mix=stage_mix([], {"text": 4 * steps}, steps, 4, ReplayRule(share=0.0)),
        schedule=ConstantSchedule(eta, 2),
        optimizer=optimizer,
    )


def _cut_in_two(folder: Path, training: dict[str, Any]) -> None:
    """Train a stage whole, and as two stages of which the second keeps the optimizer."""
    _train(folder / "whole", None, training)
    _train(folder / "cut", CUT, training)
    _join(folder / "cut", "keep", ETA, training)


@pytest.mark.parametrize(
    "training",
    [
        pytest.param({}, id="fp32"),
        pytest.param({"precision": "bf16"}, id="bf16", marks=pytest.mark.long),
        pytest.param({"precision": "bf16", "zero_stage": 2}, id="zero-2", marks=pytest.mark.long),
    ],
)
def test_i9_a_stage_cut_in_two_is_bitwise_one_where_the_optimizer_is_kept(
    tmp_path: Path, training: dict[str, Any]
) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    run_on(2, _cut_in_two, tmp_path, training)
    expected = _state(open_store(tmp_path / "whole"), FOLDER, STEPS)
    joined = _state(open_store(tmp_path / "cut"), SECOND, STEPS)
    assert set(joined) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(tensor, joined[name]), name


def _join_unmoved(
    folder: Path, optimizer: str, stages: Sequence[int], layout: dict[str, Any]
) -> None:
    """Train a stage and one that joins it, in every ZeRO stage; the second changes no number."""
    for stage in stages:
        training = {"precision": "bf16", "zero_stage": stage} | layout
        _train(folder / str(stage), CUT, training)
        _join(folder / str(stage), optimizer, 1e-30, training)


@pytest.mark.parametrize(
    ("optimizer", "stages", "layout"),
    [
        pytest.param("reset", range(4), {}, id="reset"),
        pytest.param("keep-second-moment", range(4), {}, id="kept", marks=pytest.mark.long),
        pytest.param("reset", (1, 2), DIVIDED, id="divided", marks=pytest.mark.long),
    ],
)
def test_a_join_keeps_the_fp32_weights_whatever_it_does_to_the_moments(
    tmp_path: Path, optimizer: str, stages: Sequence[int], layout: dict[str, Any]
) -> None:
    """The second stage's rate is so small that it ends with the weights that it began with."""
    for stage in stages:
        (tmp_path / str(stage)).mkdir()
    run_on(2, _join_unmoved, tmp_path, optimizer, stages, layout)
    for stage in stages:
        store = open_store(tmp_path / str(stage))
        before, after = _state(store, FOLDER, CUT), _state(store, SECOND, STEPS)
        weights = [name for name in before if name.endswith("|master") or "|" not in name]
        rounded = [name for name in weights if "|" not in name]
        assert len(weights) > len(rounded) > 0
        for name in weights:
            assert torch.equal(before[name], after[name]), (stage, name)


GROWN = "tokenizer/grown/more"
FIRST, MORE = 300, 19


def _grow_at_the_join(folder: Path, training: dict[str, Any], until: int | None) -> None:
    """Train a stage, unless that is done, and until a step one that brings entries."""
    if not (folder / FOLDER).exists():
        _train(folder, CUT, training, vocabulary=FIRST)
    steps = STEPS - CUT
    _train(
        folder,
        until,
        training,
        folder=SECOND,
        name="01-text",
        first_step=CUT,
        start=checkpoints.folder_of(FOLDER, CUT),
        mix=stage_mix([], {"text": 4 * steps}, steps, 4, ReplayRule(share=0.0)),
        optimizer="keep",
        vocabulary=FIRST + MORE,
        tokenizer=GROWN,
        grown_from=FIRST,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "training",
    [{}, {"precision": "bf16", "zero_stage": 3}, DIVIDED],
    ids=["fp32", "zero-3", "divided"],
)
def test_i9_a_stage_that_brings_entries_resumes_bitwise(
    tmp_path: Path, training: dict[str, Any]
) -> None:
    text = json.dumps(byte_level_json(FIRST))
    extension = extend_from_sample(text, ["quotidiennement, \u00e9l\u00e8ves"] * 9, MORE)
    for name, pauses in (("straight", (None,)), ("ended", (9, None))):
        store = open_store(tmp_path / name)
        end = "<|endoftext|>"
        commit_tokenizer(store, build_tokenizer(text, end, "trained", FIRST))
        grown = build_tokenizer(extension.json, end, "trained", FIRST)
        store.write(f"{GROWN}/tokenizer.json", grown.json.encode())
        store.write(f"{GROWN}/manifest.json", grown.manifest.model_dump_json().encode())
        for until in pauses:  # each in processes of its own
            run_on(2, _grow_at_the_join, tmp_path / name, training, until)
    calls = json.loads((tmp_path / "ended" / "calls.json").read_text())
    assert ["started", [9, 2]] in calls
    straight = _state(open_store(tmp_path / "straight"), SECOND, STEPS)
    ended = _state(open_store(tmp_path / "ended"), SECOND, STEPS)
    assert set(straight) == set(ended)
    for name, tensor in straight.items():
        assert torch.equal(tensor, ended[name]), name
    rows = len(straight["gpt_neox.embed_in.weight"])
    assert rows == FIRST + MORE == FIRST + len(extension.entries)
    for name in ("straight", "ended"):
        at = checkpoints.folder_of(SECOND, STEPS)
        manifest = checkpoints.read_manifest(open_store(tmp_path / name), at)
        assert manifest.tokenizer == GROWN


def _state(store: Store, folder: str, step: int) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a checkpoint, by the names in its files."""
    at = checkpoints.folder_of(folder, step)
    manifest = checkpoints.read_manifest(store, at)
    state: dict[str, torch.Tensor] = {}
    for name in manifest.files:
        if name.endswith(".safetensors"):
            state |= load_file(Path(store.url) / manifest.key_of(at, name))
    return state


def _roll_back(folder: Path, stage: int) -> None:
    """Train with a spike at step 7; note which parts of the first engine live beside the second."""
    import gc
    import weakref

    import torch.distributed as dist

    from perennial.errors import Spike
    from perennial.training import worker
    from perennial.training.engine.deepspeed_internals import inner_optimizer
    from perennial.training.spikes import response
    from perennial.training.spikes.batch import TracedBatch
    from perennial.training.spikes.response import SpikeResponse

    parts: list[weakref.ref[Any]] = []
    alive: list[list[str]] = []
    build: Any = vars(worker)["engine_at"]
    spiked: list[int] = []

    def judge(_: SpikeResponse, row: dict[str, Any]) -> None:
        if row["step"] == 7 and not spiked:
            engine = run[0]._engine
            moments = next(iter(inner_optimizer(engine).state.values()))["exp_avg"]
            parts.extend(map(weakref.ref, (engine, next(engine.module.parameters()), moments)))
            spiked.append(7)
            raise Spike(7, "planted", finite=True)

    def build_noting(*arguments: Any) -> Any:
        if spiked:
            alive.append([type(part()).__name__ for part in parts if part() is not None])
        return build(*arguments)

    run: list[Any] = []

    class Noting(worker._Worker):
        def run(self) -> bool:
            run.append(self)
            return super().run()

    patched: Any = worker
    patched._Worker, patched.engine_at = Noting, build_noting
    patched_response: Any = response
    patched_response.SpikeResponse.judge = judge
    # No corpus is there to trace the batch in.
    patched_response.trace_batch = lambda *_: TracedBatch([], {})
    gc.disable()  # nothing but what the worker itself frees
    policy = {"policy": "rollback-and-skip"}
    _train(folder, None, {"zero_stage": stage, "spikes": policy, "keep_last": 1})
    gc.enable()
    if dist.get_rank() == 0:
        (folder / "alive.json").write_text(json.dumps(alive))


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_rollback_has_one_engine_in_memory_at_a_time(tmp_path: Path, stage: int) -> None:
    run_on(2, _roll_back, tmp_path, stage)
    assert json.loads((tmp_path / "alive.json").read_text()) == [[]]
    assert checkpoints.latest_step(open_store(tmp_path), FOLDER) == STEPS


def test_a_group_that_would_load_another_optimizers_state_stops_and_says_so(
    tmp_path: Path,
) -> None:
    run_on(2, _train, tmp_path, 6, {})
    run_on(2, _train, tmp_path, None, {"optimizer": ADEMAMIX})
    (why,) = [told for name, told in json.loads((tmp_path / "calls.json").read_text())
              if name == "stopped"]  # fmt: skip
    assert "ademamix" in why[0]
    assert "adamw" in why[0]
    assert checkpoints.latest_step(open_store(tmp_path), FOLDER) == 6
