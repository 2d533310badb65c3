"""Random weights with the standard deviations of a named method."""

from __future__ import annotations

import math
from typing import Any

from perennial.errors import InputError

_INTO_RESIDUAL_STREAM = (
    "attention.dense",  # gpt_neox, falcon, bloom
    "dense_4h_to_h",
    "o_proj",  # llama and what follows it
    "down_proj",
    "c_proj",  # gpt2
    "out_proj",  # opt, gpt_neo
    "fc2",
    "fc_out",  # gptj
)
"""Ends of the names of the projections that add to the residual stream, by transformers' names."""


def small_wang_deviations(hidden_size: int, layers: int) -> tuple[float, float]:
    """Return the standard deviations of matrices, and of those into the residual stream.

    small_init is sqrt(2 / 5h) (Nguyen and Salazar 2019, arXiv 1910.05895, section 2.2), wang_init
    2 / (L sqrt(h)) (GPT-J's, arXiv 2204.06745, section 3). The paper's models have both
    (arXiv 2403.08763, appendix: GPT-NeoX's configurations).

    Args:
        hidden_size: width of the residual stream.
        layers: number of blocks.
    """
    return math.sqrt(2 / (5 * hidden_size)), 2 / (layers * math.sqrt(hidden_size))


def check_small_wang(model: Any) -> None:
    """Check that a model's projections into the residual stream are known; it may have no weights.

    Raises:
        InputError: a block has fewer than two of them, of attention and of the feed-forward part.
    """
    known = sum(_is_into_stream(name) for name, _ in model.named_parameters())
    if known < 2 * model.config.get_text_config().num_hidden_layers:
        raise InputError(
            "run file",
            "model.init",
            f"small-wang does not know the projections of {type(model).__name__} into the "
            "residual stream",
            "use init: architecture",
            code="init-unsupported",
        )


def draw_small_wang(model: Any, seed: int) -> None:
    """Draw all matrices of a model, the same on every worker; vectors stay as they are."""
    import torch

    config = model.config.get_text_config()
    small, wang = small_wang_deviations(config.hidden_size, config.num_hidden_layers)
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or name.endswith("bias"):
            continue
        with torch.no_grad():
            parameter.normal_(0.0, wang if _is_into_stream(name) else small, generator=random)


def _is_into_stream(name: str) -> bool:
    return not name.endswith("bias") and name.removesuffix(".weight").endswith(
        _INTO_RESIDUAL_STREAM
    )
