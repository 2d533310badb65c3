"""Memory and disk of a worker, a node and the store before anything is trained."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from perennial.config import load_run
from perennial.config.training import TrainingSpec
from perennial.optimizers import AdEMAMixConfig, MuonConfig
from perennial.training.cost_model import ModelSize, checkpoint_bytes, model_size
from perennial.training.memory_model import (
    Memory,
    activation_bytes,
    disk_space,
    host_memory,
    memory_by_stage,
    worker_memory,
)
from perennial.training.model.config import model_config

LENGTH = 2048


@cache
def _paper() -> tuple[ModelSize, TrainingSpec]:
    """The paper's model of 405M parameters, with its section `training` (fp16, on GPUs)."""
    spec = load_run(Path(__file__).parents[3] / "pipelines" / "paper-405m.yaml")
    return model_size(model_config(spec.model, 50277, 0, LENGTH)), spec.training


def _memory(stage: int, workers: int, **settings: Any) -> Memory:
    size, training = _paper()
    training = training.model_copy(update=settings)
    return worker_memory(size, training, LENGTH, stage, workers)


def test_zero_divides_what_its_stage_says_and_one_worker_holds_16_bytes_a_parameter() -> None:
    parameters = _paper()[0].parameters
    alone = _memory(1, 1)
    assert alone.weights + alone.gradients + alone.optimizer == 16 * parameters
    by_stage = [_memory(stage, 64) for stage in range(4)]
    divided = [
        (m.weights < 2 * parameters, m.gradients < 2 * parameters, m.optimizer < 12 * parameters)
        for m in by_stage
    ]
    assert divided == [
        (False, False, False),
        (False, False, True),
        (False, True, True),
        (True, True, True),
    ]
    assert by_stage[3].weights == parameters * 2 // 64


def test_gradients_of_bf16_are_summed_in_fp32_unless_the_run_file_says_otherwise() -> None:
    parameters = _paper()[0].parameters
    small = {"data_types": {"grad_accum_dtype": "bf16"}}
    assert _memory(1, 8, precision="bf16").gradients == 4 * parameters
    assert _memory(2, 8, precision="bf16").gradients == -(-4 * parameters // 8)
    assert _memory(1, 8, precision="bf16", deepspeed=small).gradients == 2 * parameters


def test_fp32_has_a_copy_to_step_only_where_the_weights_are_not_divided_as_the_state_is() -> None:
    parameters = _paper()[0].parameters
    bytes_each = [
        _memory(stage, 1, precision="fp32", gpus_per_worker=0.0).optimizer / parameters
        for stage in range(4)
    ]
    assert bytes_each == [8, 12, 12, 8]


def test_checkpointing_leaves_one_layer_and_every_layers_input() -> None:
    size, _ = _paper()
    tokens, logits = 4 * LENGTH, 8 * 4 * LENGTH * size.vocabulary
    kept = activation_bytes(size, LENGTH, 4, 2, recomputed=False, scores=True)
    again = activation_bytes(size, LENGTH, 4, 2, recomputed=True, scores=True)
    layer = tokens * 1024 * (34 + 5 * 16 * LENGTH // 1024)  # Korthikanti et al., equation 2
    assert kept == 24 * layer + logits
    assert again == layer + 24 * 2 * tokens * 1024 + logits


def test_what_waits_in_the_cpus_memory_or_is_never_written_is_not_counted() -> None:
    size, _ = _paper()
    told = _memory(3, 8, cpu_offload="weights", loss="chunked")
    assert (told.weights, told.gradients, told.optimizer) == (0, 0, 0)
    kept = _memory(3, 8)
    assert kept.activations - told.activations == 8 * 4 * LENGTH * size.vocabulary
    assert _memory(0, 8, cpu_offload="weights").optimizer == 12 * size.parameters


def test_an_optimizer_with_a_third_average_takes_4_bytes_more_a_parameter() -> None:
    parameters = _paper()[0].parameters
    slow = AdEMAMixConfig(kind="ademamix")
    for stage, workers in ((0, 1), (1, 64)):
        more = _memory(stage, workers, optimizer=slow).optimizer
        more -= _memory(stage, workers).optimizer
        assert more == -(-4 * parameters // (workers if stage else 1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_hidden_matrix_under_muon_takes_4_bytes_less_a_weight_and_there_is_zero_0_alone(
    precision: str,
) -> None:
    size, training = _paper()
    muon = {"optimizer": MuonConfig(kind="muon"), "precision": precision}
    less = _memory(0, 8, precision=precision).optimizer - _memory(0, 8, **muon).optimizer
    assert less == 4 * size.hidden_matrices
    assert set(memory_by_stage(size, training.model_copy(update=muon), LENGTH, 8)) == {0}
    # Where nobody counted them, no state is left out.
    unknown = dataclasses.replace(size, hidden_matrices=0)
    told = worker_memory(unknown, training.model_copy(update=muon), LENGTH, 0, 8)
    assert told.optimizer == _memory(0, 8, precision=precision).optimizer


NUMBERS = 20_568_128
SMALL = ModelSize(NUMBERS, 1_835_008, 16_898_112, False, 7, 448, 7, 4096)
"""The model that `benchmarks/results/memory.md` was measured with."""


@pytest.mark.parametrize(
    ("precision", "stage", "measured"),
    [
        ("fp32", 0, 20.0),
        ("fp32", 1, 20.4),
        ("fp32", 2, 20.1),
        ("bf16", 0, 22.0),
        ("bf16", 1, 18.0),
        ("bf16", 2, 18.0),
    ],
)
def test_the_most_at_once_is_what_two_workers_were_measured_to_take(
    precision: str, stage: int, measured: float
) -> None:
    """Bytes a parameter, by torch's record of its allocations; of ZeRO 3 the result is off."""
    settings = {"global_batch": 4, "micro_batch": 2, "precision": precision, "workers": 2}
    training = TrainingSpec.model_validate(settings | {"zero_stage": stage})
    told = worker_memory(SMALL, training, 256, stage, 2)
    assert told.total / NUMBERS == pytest.approx(measured, rel=0.02)


def test_a_bucket_is_counted_as_large_as_the_run_file_makes_it() -> None:
    small = {"zero_optimization": {"reduce_bucket_size": 1_000_000}}
    for stage in (1, 2, 3):
        told = _memory(stage, 8).temporaries - _memory(stage, 8, deepspeed=small).temporaries
        assert told > _paper()[0].parameters


def test_the_gradients_of_earlier_micro_batches_are_there_beside_activations() -> None:
    size, training = _paper()
    one, four = (
        worker_memory(
            size, training.model_copy(update={"micro_batch": rows, "workers": 276}), LENGTH, 1, 276
        )
        for rows in (4, 1)
    )
    assert four.total - four.activations > one.total - one.activations
    assert (
        one.total < one.weights + one.gradients + one.optimizer + one.activations + one.temporaries
    )


def test_a_node_holds_the_libraries_of_its_workers_and_what_is_offloaded() -> None:
    size, training = _paper()
    training = training.model_copy(update={"zero_stage": 1})
    beside = host_memory(size, training, LENGTH, 16, 8)
    assert beside.training == 0
    assert beside.libraries == 8 * host_memory(size, training, LENGTH, 16, 1).libraries
    away = training.model_copy(update={"cpu_offload": "optimizer"})
    # State, fp32 weights and gradients, the sum over micro batches, and a rounded copy, by 16.
    assert host_memory(size, away, LENGTH, 16, 8).training == pytest.approx(
        8 * (12 + 4 + 2 + 2) * size.parameters / 16, abs=100
    )
    on_cpus = training.model_copy(update={"gpus_per_worker": 0.0, "precision": "bf16"})
    worker = worker_memory(size, on_cpus, LENGTH, 1, 16)
    assert host_memory(size, on_cpus, LENGTH, 16, 8).training == 8 * worker.total


def test_each_worker_builds_the_whole_model_but_under_zero_3() -> None:
    size, training = _paper()
    starts = {
        stage: [
            host_memory(
                size, training.model_copy(update={"zero_stage": stage}), LENGTH, 64, on_node
            ).start
            for on_node in (1, 8)
        ]
        for stage in (1, 3)
    }
    assert starts[1][1] - starts[1][0] == 7 * 4 * size.parameters
    assert starts[3][1] - starts[3][0] < 4 * size.parameters


def test_disks_hold_a_snapshot_twice_and_the_store_one_checkpoint_more_than_it_keeps() -> None:
    size, training = _paper()
    whole = checkpoint_bytes(size, training)
    alone = disk_space(size, training, 1, 1, kept=5, stored=0)
    assert alone.snapshot == alone.left_over == whole
    assert alone.node == 2 * whole
    assert alone.store == 6 * whole
    shared = disk_space(size, training, 64, 8, kept=5, stored=3 * size.parameters)
    assert 2 * size.parameters < shared.snapshot < whole / 2
    assert shared.start == 4 * size.parameters, "the model that the run starts from, in fp32"
    assert shared.store == 6 * whole + 3 * 4 * size.parameters
    assert disk_space(size, training, 64, 8, kept=0, stored=0).store == 0
