"""Rotary embeddings of several architectures, none as version 4 of transformers assumes."""

from __future__ import annotations

from typing import Any

ROPE = {"rope_type": "default", "rope_theta": 500000.0}
SCALED = {"original_max_position_embeddings": 32, "factor": 4.0, "rope_theta": 20000.0}
LAYERS = ["sliding_attention", "full_attention"]
OF_LAYERS = {"full_attention": ROPE, "sliding_attention": ROPE | {"rope_theta": 300.0}}
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": ROPE}),
    "llama-linear": ("llama", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 4.0}}),
    "llama-yarn": ("llama", {"rope_parameters": SCALED | {"rope_type": "yarn"}}),
    "llama-yarn-alone": (
        "llama",
        {"rope_parameters": ROPE | {"rope_type": "yarn", "factor": 4.0}},
    ),
    "llama-3": (
        "llama",
        {
            "rope_parameters": SCALED
            | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        },
    ),
    "gpt_neox": ("gpt_neox", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}),
    "stablelm": ("stablelm", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}),
    "phi": ("phi", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}),
    "gemma3_text": (
        "gemma3_text",
        {"rope_parameters": OF_LAYERS, "layer_types": LAYERS, "sliding_window": 8, "head_dim": 16},
    ),
    "olmo3": (
        "olmo3",
        {
            "rope_parameters": {name: ROPE for name in LAYERS},
            "layer_types": LAYERS,
            "sliding_window": 8,
        },
    ),
    "mistral": ("mistral", {"rope_parameters": ROPE, "head_dim": 16}),
    "qwen2": ("qwen2", {"rope_parameters": ROPE}),
    "qwen3": ("qwen3", {"rope_parameters": ROPE, "head_dim": 16}),
    "olmo2": ("olmo2", {"rope_parameters": ROPE}),
    "phi3": ("phi3", {"rope_parameters": ROPE}),
    "smollm3": ("smollm3", {"rope_parameters": ROPE}),
    "granite": ("granite", {"rope_parameters": ROPE}),
    "starcoder2": ("starcoder2", {"rope_parameters": ROPE}),
    "gemma2": ("gemma2", {"rope_parameters": ROPE, "head_dim": 16}),
    "mixtral": ("mixtral", {"rope_parameters": ROPE, "num_local_experts": 4}),
    "gpt2": ("gpt2", {"n_inner": 64}),
}
"""model types with parameters that are not what version 4 assumes, by a name"""
