"""A configuration with the fields of both versions of transformers is read as the one it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from perennial.training.model.spellings import spell_for_all
from tests.support.rope_kinds import ROPES


@pytest.mark.parametrize("name", ROPES)
def test_version_5_reads_both_spellings_as_its_own(name: str) -> None:
    model_type, settings = ROPES[name]
    config = CONFIG_MAPPING[model_type](num_hidden_layers=2, use_cache=False, **settings)
    written = json.loads(config.to_json_string(use_diff=False))
    spelled = spell_for_all(written)
    read = CONFIG_MAPPING[model_type].from_dict(spelled)
    assert getattr(read, "rope_parameters", None) == getattr(config, "rope_parameters", None)
    assert read.use_cache


@pytest.mark.parametrize(
    ("model_type", "rope", "expected"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 5.0}, {"rope_theta": 5.0}),
        (
            "gpt_neox",
            {"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 0.5},
            {"rotary_emb_base": 5.0, "rotary_pct": 0.5},
        ),
        (
            "llama",
            {"rope_type": "linear", "rope_theta": 5.0, "factor": 2.0},
            {"rope_theta": 5.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        ("llama", {"rope_type": "of-its-own", "rope_theta": 5.0}, {}),
        ("other", {"full_attention": {"rope_type": "default", "rope_theta": 5.0}}, {}),
    ],
)
def test_version_4_gets_the_fields_that_it_knows(
    model_type: str, rope: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = {"model_type": model_type, "rope_parameters": rope, "dtype": "bfloat16"}
    added = {"use_cache": True, "torch_dtype": "bfloat16"}
    assert spell_for_all(config) == config | added | expected
