"""Costs of a model before it is trained: parameters, memory, checkpoint bytes, FLOPs.

Everything but `model_size` is arithmetic on its result. Sources: memory of weights, gradients and
optimizer by ZeRO stage, Rajbhandari et al. 2020 (arXiv 1910.02054, sections 3 and 5); activations,
Korthikanti et al. 2022 (arXiv 2205.05198, sections 4 and 5); FLOPs, Chowdhery et al. 2022 (PaLM,
arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from perennial.config.training import Precision, TrainingSpec

ZERO_STAGES = (0, 1, 2, 3)
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
_MASTER_BYTES = 4
"""Bytes of the fp32 copy of a weight that the optimizer steps."""


@dataclass(frozen=True)
class ModelSize:
    """The numbers of a model that its costs follow from.

    parameters: all of them, a tied one counted once.
    embedding: those of the input embedding.
    without_embeddings: neither input embedding nor output head.
    tied: whether the output head is the input embedding.
    """

    parameters: int
    embedding: int
    without_embeddings: int
    tied: bool
    layers: int
    hidden: int
    heads: int
    vocabulary: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU (or in one CPU worker) during a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Return the sum; the allocator's waste and communication buffers come on top."""
        return self.weights + self.gradients + self.optimizer + self.activations


def model_size(config: PretrainedConfig) -> ModelSize:
    """Build the model of `config` on torch's meta device, which takes no memory, and count."""
    import torch
    from transformers import AutoModelForCausalLM

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


def memory(
    size: ModelSize,
    training: TrainingSpec,
    sequence_length: int,
    zero_stage: int,
    workers: int,
) -> Memory:
    """Return bytes in one worker's memory; what `cpu_offload` moves to the CPU is not in it.

    Args:
        size: of the model.
        training: the run file's section.
        sequence_length: in tokens.
        zero_stage: of DeepSpeed's ZeRO, 0 to 3; that of `training` is not read.
        workers: number of data-parallel workers that divide what the stage divides.
    """
    number = number_bytes(training.precision)

    def share(bytes_per_parameter: int, from_stage: int) -> int:
        total = size.parameters * bytes_per_parameter
        return -(-total // workers) if zero_stage >= from_stage else total

    away = training.cpu_offload
    optimizer_bytes = _MASTER_BYTES + training.optimizer_config.state_bytes()
    return Memory(
        weights=0 if away == "weights" and zero_stage == 3 else share(number, 3),
        gradients=share(gradient_bytes(training), 2),
        optimizer=0 if away != "none" and zero_stage else share(optimizer_bytes, 1),
        activations=activation_bytes(
            size,
            sequence_length,
            training.micro_batch,
            number,
            recomputed=training.activation_checkpointing,
            scores=training.attention == "eager",
            logits=training.loss == "full",
        ),
    )


def activation_bytes(
    size: ModelSize,
    sequence_length: int,
    micro_batch: int,
    bytes_per_number: int,
    *,
    recomputed: bool,
    scores: bool,
    logits: bool = True,
) -> int:
    """Return the bytes of activations that one forward pass leaves to its backward pass.

    recomputed: activation checkpointing; every layer keeps its input, and one layer at a time the
    rest. scores: attention keeps its (sequence, sequence) scores, which fused kernels never write.
    logits: the loss is not taken a part of the tokens at a time.
    A layer is s b h (34 + 5 a s / h) bytes in 16-bit numbers, 34 without the scores; the logits
    and their gradient are fp32.
    """
    tokens = sequence_length * micro_batch
    layer = 34 * tokens * size.hidden
    if scores:
        layer += 5 * size.heads * sequence_length * tokens
    inputs = 2 * tokens * size.hidden
    layers = size.layers * inputs + layer if recomputed else size.layers * layer
    output = 2 * 4 * tokens * size.vocabulary if logits else 0
    return layers * bytes_per_number // 2 + output


def checkpoint_bytes(size: ModelSize, training: TrainingSpec) -> int:
    """Return bytes of one checkpoint.

    It holds the weights as they are trained, the optimizer's state, and below fp32 the fp32 weights
    beside them.
    """
    master = 0 if training.precision == "fp32" else _MASTER_BYTES
    state = training.optimizer_config.state_bytes()
    return size.parameters * (number_bytes(training.precision) + state + master)


def gradient_bytes(training: TrainingSpec) -> int:
    """Return the bytes of one number of the gradient that micro batches are summed in."""
    sums = training.deepspeed.get("data_types", {}).get("grad_accum_dtype", "fp32")
    if training.precision == "bf16" and sums == "fp32":
        return 4
    return number_bytes(training.precision)


def number_bytes(precision: Precision) -> int:
    """Return the bytes of one number of the forward pass."""
    return 4 if precision == "fp32" else 2
