"""A model's hidden matrices, and the parameters that look like matrices and are none."""

from __future__ import annotations

from typing import Any

import torch


def is_bias_or_rate(name: str, parameter: torch.nn.Parameter) -> bool:
    """Return whether a parameter is no matrix, whatever its shape.

    Experts keep their biases as one tensor `(experts, outputs)`. The rates of a state space model
    decay to others than it was given; its authors mark them.
    """
    is_rate = name.endswith("A_log") or getattr(parameter, "_no_weight_decay", False)
    return name.endswith("bias") or bool(is_rate)


def hidden_matrices(model: Any) -> list[torch.nn.Parameter]:
    """Return the matrices between embeddings and head, in the model's order.

    A matrix has two dimensions: experts that are kept as one tensor `(experts, outputs, inputs)`
    and kernels of convolutions are not among them, nor are embeddings of positions.

    Args:
        model: of transformers, undivided.
    """
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    ends = [*tables, model.get_input_embeddings(), model.get_output_embeddings()]
    outside = {id(its) for module in ends if module is not None for its in module.parameters()}
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
        and id(parameter) not in outside
        and not is_bias_or_rate(name, parameter)
    ]
