"""Architectures whose matrices a tensor-parallel group can divide, and what that needs of them.

DeepSpeed's AutoTP follows the plan that transformers has for an architecture. Those listed here
are trained by a test beside an undivided model, with the same losses, gradients and weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.training.model.features import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig

DIVISIBLE = ("gpt_neox", "llama", "mistral", "qwen2", "qwen3")
"""model types that can be divided"""
_DIVIDED = {
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "heads of keys and values",
    "intermediate_size": "columns between the matrices of a block",
}


def check_divisible(config: PretrainedConfig, tensor_parallel: int) -> None:
    """Refuse a model that `tensor_parallel` workers cannot compute together.

    Raises:
        InputError: names the first reason (`feature-unsupported`).
    """
    if tensor_parallel == 1:
        return
    for problem, remedy in _obstacles(config.get_text_config(), tensor_parallel):
        raise refused("tensor_parallel", problem, remedy)


def _obstacles(config: PretrainedConfig, workers: int) -> Iterator[tuple[str, str]]:
    """Yield what is in the way, each with a remedy."""
    without = "use tensor_parallel: 1 and a higher zero_stage"
    if config.model_type not in DIVISIBLE:
        yield f"{config.model_type} is not among {', '.join(DIVISIBLE)}", without
    if config.tie_word_embeddings:
        yield "the model's head and its input embedding are one tensor, which stays whole", without
    for field, name in _DIVIDED.items():
        number = getattr(config, field, None)
        if number is not None and number % workers:
            yield (
                f"{workers} workers cannot divide {number} {name} ({field})",
                f"use a divisor of {number}",
            )
    if getattr(config, "attention_dropout", 0):
        yield (
            "all workers of a group would leave out the same attention weights "
            f"(attention_dropout {config.attention_dropout:g})",
            "set attention_dropout to 0",
        )
