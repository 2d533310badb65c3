"""The DeepSpeed engine around a model, and its whole weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from perennial.training.engine.deepspeed_config import deepspeed_settings
from perennial.training.engine.deepspeed_internals import (
    deepspeed,
    disable_shared_memory_collectives,
    gather_slices,
    initialize,
    is_partitioned,
    sum_over_slices,
    tensor_slice,
    whole_shape,
    workers_of_one_model,
)
from perennial.training.engine.partitioned_load import load_partitioned
from perennial.training.engine.probe import probe_features
from perennial.training.model.config import stored_model
from perennial.training.model.features import (
    balance_weight,
    find_padding,
    make_labels,
    measure_balance,
    model_inputs,
    prepare,
)
from perennial.training.model.matrices import hidden_matrices, is_bias_or_rate
from perennial.training.model.shards import live_weights
from perennial.training.model.tensor_parallel import check_divisible

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from perennial.config.training import Precision, TrainingSpec
    from perennial.optimizers import OptimizerConfig

_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def build_engine(
    model: Any, spec: TrainingSpec, global_batch: int, world_size: int, end_of_document: int
) -> Any:
    """Return a DeepSpeed engine with the run file's optimizer and a constant global batch.

    Raises InputError when the architecture cannot do what the run file asks of it.
    """
    check_divisible(model.config, spec.tensor_parallel)
    _start_deepspeed()
    prepare(model, spec)
    config = spec.optimizer_config
    groups = _parameter_groups(model, config)
    optimizer = config.build(groups, offloaded=spec.cpu_offload != "none")
    parameters = count_weights(model)
    settings = deepspeed_settings(spec, global_batch, world_size, parameters)
    engine = initialize(model, optimizer, settings)
    # DeepSpeed 0.19.8 steps once on zero gradients where ZeRO 0 keeps fp32 copies, and would
    # correct the moments' bias for one step too many.
    if spec.zero_stage == 0:
        optimizer.state.clear()
    if spec.zero_stage == 3 and spec.loss == "chunked":
        # The loss reads the head's weights outside the head, so the whole model gathers them.
        head = model.get_output_embeddings()
        for parameter in head.parameters():
            deepspeed.zero.register_external_parameter(model, parameter)
    probe_features(engine, spec, end_of_document)
    if spec.compile:
        engine.compile()
    return engine


def load_model(folder: Path, spec: TrainingSpec, global_batch: int, world_size: int) -> Any:
    """Return the model in a local folder, for `build_engine`. A collective under ZeRO 3.

    Under ZeRO 3 each rank loads its part alone, where the files name the weights as the model does.
    """
    if spec.zero_stage == 3:
        _start_deepspeed()
        settings = deepspeed_settings(spec, global_batch, world_size, parameters=1)
        model = load_partitioned(folder, _DTYPES[spec.precision], settings)
        if model is not None:
            return model
    return stored_model(folder)


def _start_deepspeed() -> None:
    disable_shared_memory_collectives()
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")


def count_weights(model: torch.nn.Module) -> int:
    """Return the number of a model's weights, divided ones whole."""
    return sum(whole_shape(parameter).numel() for parameter in model.parameters())


class Losses(NamedTuple):
    """Losses of a micro batch; means over its tokens.

    loss: nats per token, which is reported.
    objective: what the gradient is taken of: the loss, and the weighted loss of the experts.
    balance: loss of unevenly used experts, 1 when all are used alike; None for a model without.
    """

    loss: torch.Tensor
    objective: torch.Tensor
    balance: torch.Tensor | None = None


def losses_of(
    engine: Any, ids: torch.Tensor, spec: TrainingSpec, end_of_document: int, padded: bool = False
) -> Losses:
    """Return the losses of a micro-batch of ids `(micro_batch, sequence)`.

    Every token after a sequence's first is predicted, the first of a next document too, but no
    padding: without any, the number of tokens that a step averages over does not depend on what is
    in them.

    Args:
        engine: the engine.
        ids: of the micro-batch.
        spec: the section `training`.
        end_of_document: the id that ends a document.
        padded: whether the rows may hold padding, which no loss is taken of.
    """
    inputs = model_inputs(ids, spec, end_of_document)
    padding = find_padding(ids, end_of_document) if padded else None
    labels = ids if padding is None else make_labels(ids, padding)
    weight = balance_weight(engine.module, spec)
    if not weight:
        loss = engine(labels=labels, **inputs).loss
        return Losses(loss, loss)
    output = engine(labels=labels, output_router_logits=True, **inputs)
    balance = measure_balance(engine.module, output, padding)
    return Losses(output.loss, output.loss + weight * balance, balance)


def loss_of(engine: Any, ids: torch.Tensor, spec: TrainingSpec, end_of_document: int) -> Any:
    """Return the mean nats per token of a micro-batch of ids `(micro_batch, sequence)`."""
    return losses_of(engine, ids, spec, end_of_document).loss


def set_eta(engine: Any, eta: float) -> None:
    """Set the learning rate of the next optimizer step, for every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = eta


def gradient_norm(engine: Any) -> torch.Tensor | None:
    """Return the norm of the whole gradient before clipping; None where DeepSpeed keeps it.

    ZeRO 0 in fp32 is stepped by torch alone. Call it between backward and step; it is None inside
    an accumulation, where no step is taken.
    """
    if not isinstance(engine.optimizer, torch.optim.Optimizer):
        return None
    if not engine.is_gradient_accumulation_boundary():
        return None
    kept = [p for p in engine.module.parameters() if p.grad is not None]
    if workers_of_one_model(engine) == 1:
        return torch.nn.utils.get_total_norm([p.grad for p in kept])
    # What every worker of a tensor-parallel group has counts once.
    alike = torch.nn.utils.get_total_norm([p.grad for p in kept if tensor_slice(p) is None])
    mine = torch.nn.utils.get_total_norm([p.grad for p in kept if tensor_slice(p) is not None])
    return (alike**2 + sum_over_slices(mine**2)).sqrt()


def overflowed(engine: Any) -> bool:
    """Return whether fp16 left out the step just taken.

    Its scaled gradient was not finite; DeepSpeed lowers the scale for the next one.
    """
    return bool(engine.fp16_enabled() and not engine.was_step_applied())


def gather_weights(engine: Any, wanted: Collection[str] | None = None) -> dict[str, torch.Tensor]:
    """Return whole weights of the model by name: those that this rank wants, by default all.

    A collective: every rank must call it, each with the names that it wants. What workers divide
    (ZeRO 3, or a tensor-parallel group) is copied to the CPU, and a rank holds one more at a time;
    other tensors are the live ones, to be written before the next step.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in live_weights(engine.module).items():
        divided, sliced = is_partitioned(tensor), tensor_slice(tensor) is not None
        with deepspeed.zero.GatheredParameters([tensor], enabled=divided):
            whole = gather_slices(tensor) if sliced else tensor.detach()
            if wanted is None or name in wanted:
                put_together = divided or sliced
                weights[name] = (
                    whole.to("cpu", copy=divided).contiguous() if put_together else whole
                )
    return weights


def _parameter_groups(model: torch.nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return torch's parameter groups, for an optimizer of whole matrices with the key `hidden`.

    The groups of other optimizers are two in a fixed order, which the bits of a run depend on.
    """
    groups = _decay_groups(model, config.weight_decay)
    if not config.whole_matrices:
        return groups
    hidden = {id(parameter) for parameter in hidden_matrices(model)}
    decayed, spared = groups
    divided = [
        {"params": [p for p in decayed["params"] if (id(p) in hidden) is its], "hidden": its}
        for its in (True, False)
    ]
    return [*(decayed | part for part in divided), spared | {"hidden": False}]


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in trained if _decays(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if not _decays(name, p)], "weight_decay": 0.0},
    ]


def _decays(name: str, parameter: torch.nn.Parameter) -> bool:
    """Return whether weight decay applies: to matrices, never to norms, biases and marked ones."""
    return len(whole_shape(parameter)) >= 2 and not is_bias_or_rate(name, parameter)
