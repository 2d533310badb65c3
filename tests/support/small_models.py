"""Architectures of transformers in a size that takes no time."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

_SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def small_model(architecture: str, **settings: Any) -> Any:
    """A model of random weights, the same at every call; `settings` go before the small ones."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[architecture](**_SMALL | settings)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
