"""Costs of a model before it is trained: parameters, checkpoint bytes, FLOPs.

Everything but `model_size` is arithmetic on its result; `memory_model` has the memory. Source of
the FLOPs: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from perennial.config.training import Precision, TrainingSpec

_PEAK_FLOPS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""FLOP/s by a part of the device's name, longer names first."""
MASTER_BYTES = 4
"""Bytes of the fp32 copy of a weight that the optimizer steps."""


@dataclass(frozen=True)
class ModelSize:
    """The numbers of a model that its costs follow from.

    parameters: all of them, a tied one counted once.
    embedding: those of the input embedding.
    without_embeddings: neither input embedding nor output head.
    tied: whether the output head is the input embedding.
    hidden_matrices: those of the matrices that an optimizer of whole matrices steps as such.
    """

    parameters: int
    embedding: int
    without_embeddings: int
    tied: bool
    layers: int
    hidden: int
    heads: int
    vocabulary: int
    hidden_matrices: int = 0

    def parameters_of_one(self, together: int) -> int:
        """Return the parameters that each of `together` workers of a tensor-parallel group has.

        The input embedding is whole in each; norms, which are too, are counted as divided.
        """
        if together == 1:
            return self.parameters
        return self.embedding - (self.embedding - self.parameters) // together


def model_size(config: PretrainedConfig) -> ModelSize:
    """Build the model of `config` on torch's meta device, which takes no memory, and count."""
    import torch
    from transformers import AutoModelForCausalLM

    from perennial.training.model.matrices import hidden_matrices

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding = table.weight.numel()
    tied = head is None or head.weight is table.weight
    parameters = sum(parameter.numel() for parameter in model.parameters())
    outside = embedding if tied else embedding + head.weight.numel()
    return ModelSize(
        parameters=parameters,
        embedding=embedding,
        without_embeddings=parameters - outside,
        tied=tied,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        vocabulary=config.vocab_size,
        hidden_matrices=sum(parameter.numel() for parameter in hidden_matrices(model)),
    )


def peak_flops(device_name: str) -> float | None:
    """Return the FLOP/s of a GPU in bf16 without sparsity, by NVIDIA's data sheets; None unknown.

    Args:
        device_name: as torch names it, such as "NVIDIA H100 80GB HBM3".
    """
    return next((flops for name, flops in _PEAK_FLOPS.items() if name in device_name), None)


def flops_per_token(size: ModelSize, sequence_length: int) -> int:
    """Return the FLOPs of one trained token, forward and backward: 6 N + 12 L h s.

    N leaves out an untied input embedding: it is looked up, not multiplied. What activation
    checkpointing computes again is not counted, as in the definition of MFU.
    """
    multiplied = size.parameters - (0 if size.tied else size.embedding)
    return 6 * multiplied + 12 * size.layers * size.hidden * sequence_length


def checkpoint_bytes(size: ModelSize, training: TrainingSpec) -> int:
    """Return bytes of one checkpoint.

    It holds the weights as they are trained, the optimizer's state, and below fp32 the fp32 weights
    beside them.
    """
    return size.parameters * checkpoint_bytes_each(training) - state_bytes_saved(size, training)


def checkpoint_bytes_each(training: TrainingSpec) -> int:
    """Return bytes in a checkpoint of one weight that is in no hidden matrix."""
    master = 0 if training.precision == "fp32" else MASTER_BYTES
    state = training.optimizer_config.state_bytes()
    return number_bytes(training.precision) + state + master


def state_bytes_saved(size: ModelSize, training: TrainingSpec) -> int:
    """Return bytes of state that hidden matrices do not have and as many other weights would."""
    config = training.optimizer_config
    if not config.whole_matrices:
        return 0
    return size.hidden_matrices * (config.state_bytes() - config.state_bytes(hidden=True))


def number_bytes(precision: Precision) -> int:
    """Return the bytes of one number of the forward pass."""
    return 4 if precision == "fp32" else 2
