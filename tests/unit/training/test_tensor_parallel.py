"""Workers that compute one model together: what is refused, which rows they read, their memory."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import CONFIG_MAPPING

from perennial.config import load_run
from perennial.config.training import TrainingSpec
from perennial.errors import InputError
from perennial.planning.fleet_forecast import forecast_fleet
from perennial.planning.spot_fleet import CostsSpec, Fleet
from perennial.training.cost_model import ModelSize, model_size
from perennial.training.engine.deepspeed_config import deepspeed_settings
from perennial.training.engine.grid import Grid
from perennial.training.memory_model import (
    activation_bytes,
    host_memory,
    memory_by_stage,
    worker_memory,
)
from perennial.training.model.config import model_config
from perennial.training.model.tensor_parallel import check_divisible
from perennial.training.ray.internals import CurrentResourcesPolicy

HEADS = {
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 18,
}


def _spec(**settings: Any) -> TrainingSpec:
    group: dict[str, Any] = {"workers": 4, "tensor_parallel": 2, "global_batch": 4}
    return TrainingSpec.model_validate({"micro_batch": 1} | group | settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"workers": 3}, "tensor_parallel 2 does not divide 3 workers; use workers in multiples"),
        ({"workers": {"min": 1, "max": 4}}, "does not divide 1 workers"),
        ({"zero_stage": 3}, "with zero_stage 3 is refused"),
        ({"zero_stage": 0, "precision": "bf16"}, "zero_stage 0 in bf16 is refused"),
        ({"loss": "chunked"}, "loss chunked is refused"),
        ({"compile": True}, "compile is refused"),
        ({"global_batch": 1}, "leaves some of 2 tensor-parallel groups without one"),
        ({"tensor_parallel": 0}, "tensor_parallel"),
        ({"deepspeed": {"tensor_parallel": {"autotp_size": 2}}}, "by training.tensor_parallel"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_by_name(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        _spec(**settings)


def test_a_group_needs_one_sequence_and_not_each_of_its_workers() -> None:
    spec = _spec(global_batch=6)
    settings = deepspeed_settings(spec, 6, 4, parameters=1000)
    assert settings["gradient_accumulation_steps"] == 3
    _spec(global_batch=2)
    assert settings["tensor_parallel"] == {"autotp_size": 2}
    assert "tensor_parallel" not in deepspeed_settings(_spec(tensor_parallel=1), 4, 4, 1000)


@pytest.mark.parametrize(
    ("kind", "settings", "workers", "told"),
    [
        ("mixtral", HEADS, 3, "mixtral is not among gpt_neox, llama"),
        ("gpt2", {}, 2, "gpt2 is not among"),
        ("llama", HEADS | {"tie_word_embeddings": True}, 3, "are one tensor"),
        ("llama", HEADS, 2, "2 workers cannot divide 3 heads of keys and values"),
        ("llama", HEADS, 4, r"4 workers cannot divide 6 attention heads \(num_attention_heads\)"),
        ("llama", HEADS | {"intermediate_size": 20}, 3, "20 columns between the matrices"),
        ("llama", HEADS | {"attention_dropout": 0.1}, 3, "leave out the same attention weights"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused_by_name(
    kind: str, settings: dict[str, Any], workers: int, told: str
) -> None:
    config = CONFIG_MAPPING[kind](**settings)
    check_divisible(config, 1)
    with pytest.raises(InputError, match=told) as raised:
        check_divisible(config, workers)
    assert raised.value.code == "feature-unsupported"


def test_a_model_whose_parts_are_equal_is_not_refused() -> None:
    check_divisible(CONFIG_MAPPING["llama"](**HEADS), 3)
    check_divisible(CONFIG_MAPPING["gpt_neox"](num_attention_heads=6, intermediate_size=18), 6)


def test_the_workers_of_a_group_stand_for_one() -> None:
    places = [Grid(rank, 6, 3) for rank in range(6)]
    assert [place.data_rank for place in places] == [0, 0, 0, 1, 1, 1]
    assert {place.data_size for place in places} == {2}
    assert [place.leads for place in places] == [True, False, False] * 2


@pytest.mark.parametrize(
    ("together", "rooms", "expected"),
    [(1, [3, 2, 1], 6), (2, [3, 2, 1], 4), (3, [3, 2, 2], 3), (4, [3, 3], 0), (2, [20], 8)],
)
def test_only_whole_groups_on_one_node_count_as_room(
    together: int, rooms: list[int], expected: int
) -> None:
    scaling = SimpleNamespace(
        max_workers=8,
        use_tpu=False,
        _resources_per_worker_not_none={"CPU": 0.5},
    )
    policy = object.__new__(CurrentResourcesPolicy)
    policy.scaling_config, policy._together = scaling, together
    nodes = {str(node): {"CPU": room / 2 + 0.1} for node, room in enumerate(rooms)}
    assert policy._count_possible_workers(nodes) == expected


LENGTH = 2048


@cache
def _paper() -> tuple[ModelSize, TrainingSpec]:
    """The paper's model of 9.6B parameters, with its section `training` (fp16, on GPUs)."""
    spec = load_run(Path(__file__).parents[3] / "pipelines" / "paper-10b.yaml")
    return model_size(model_config(spec.model, 50277, 0, LENGTH)), spec.training


def test_each_of_six_workers_has_the_embedding_and_a_sixth_of_the_rest() -> None:
    size, training = _paper()
    together = training.model_copy(update={"tensor_parallel": 6})
    mine = size.parameters_of_one(6)
    assert mine == size.embedding - (size.embedding - size.parameters) // 6
    alone, divided = (worker_memory(size, its, LENGTH, 1, 276) for its in (training, together))
    assert divided.weights == 2 * mine
    assert alone.weights == 2 * size.parameters
    # ZeRO divides a sixth of the state among a sixth of the workers.
    assert divided.optimizer == pytest.approx(alone.optimizer, rel=0.5)
    assert divided.optimizer == -(-12 * mine // 46)
    assert set(memory_by_stage(size, together, LENGTH, 276)) == {0, 1, 2}


def test_a_layer_s_inputs_are_whole_and_its_inner_activations_divided() -> None:
    size, _ = _paper()
    one, six = (
        activation_bytes(
            size, LENGTH, 4, 2, recomputed=False, scores=True, logits=False, together=together
        )
        for together in (1, 6)
    )
    tokens = 4 * LENGTH * size.layers
    inputs = 10 * tokens * size.hidden
    assert six - inputs == pytest.approx((one - inputs) / 6, rel=1e-6)


def test_a_node_of_a_group_starts_with_the_whole_model_in_every_worker() -> None:
    size, training = _paper()
    together = training.model_copy(update={"tensor_parallel": 6})
    node = host_memory(size, together, LENGTH, 276, 6)
    assert node.start == host_memory(size, training, LENGTH, 276, 6).start
    # Each worker puts the tensors together that it writes.
    assert node.snapshot - host_memory(size, training, LENGTH, 276, 6).snapshot == pytest.approx(
        2 * size.parameters * 6 / 276, rel=1e-6
    )


def test_the_simulation_of_single_workers_is_refused() -> None:
    spec = load_run(Path(__file__).parents[3] / "pipelines" / "paper-10b.yaml")
    training = spec.training.model_copy(update={"tensor_parallel": 6})
    spec = spec.model_copy(update={"training": training})
    measured = {"step_seconds": 4.0, "checkpoint_seconds": 10.0, "restart_seconds": 60.0}
    costs = CostsSpec.model_validate({"source": "a guess", **measured})
    with pytest.raises(InputError) as raised:
        forecast_fleet(spec, costs, Fleet(0.1, 0.0, 60.0), 3600.0, [0])
    assert raised.value.code == "simulation-of-groups"
