"""Adapters around names that DeepSpeed keeps private; no other module of the package uses one.

Written for DeepSpeed 0.19. When a release of DeepSpeed changes how it divides the optimizer's
state, or how it names what it holds, this file alone changes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from perennial.training.absent_modules import absent

# DeepSpeed's autotuner, which nothing here uses, imports MLflow wherever it is installed: 1,000
# modules and 50 MB in every worker.
with absent("mlflow"):
    import deepspeed as deepspeed
    from deepspeed.ops import __compatible_ops__
    from deepspeed.runtime.engine import BFLOAT16, ZERO_OPTIMIZATION, DeepSpeedEngine
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK


@dataclass(frozen=True)
class ParameterShard:
    """A run of one parameter's elements whose optimizer state this worker holds, and its place.

    parameter: its name in the model; start, length: its elements, flattened.
    owner: the fp32 tensor that the optimizer steps; offset: of the shard's elements in it.
    """

    parameter: str
    start: int
    length: int
    owner: torch.Tensor
    offset: int

    def slice(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the shard's elements `(length,)` of a tensor laid out like the owner."""
        return tensor.view(-1).narrow(0, self.offset, self.length)

    def part(self, rank: int, world_size: int) -> ParameterShard:
        """Return the part that `rank` writes of a shard that every rank holds."""
        first, last = (self.length * r // world_size for r in (rank, rank + 1))
        return replace(
            self, start=self.start + first, offset=self.offset + first, length=last - first
        )


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer inside DeepSpeed's wrappers."""
    outer = engine.optimizer
    inner: torch.optim.Optimizer = (
        outer if isinstance(outer, torch.optim.Optimizer) else outer.optimizer
    )
    return inner


def owned_shards(engine: Any) -> Iterator[ParameterShard]:
    """Return what this worker holds, in the order of the tensors that the optimizer steps."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return _whole_parameters(engine.optimizer, names)
    divided = _parts_of_parameters if stage == 3 else _parts_of_groups
    return divided(engine.optimizer, names)


def _whole_parameters(optimizer: Any, names: dict[int, str]) -> Iterator[ParameterShard]:
    """ZeRO 0: every worker holds everything; below fp32 DeepSpeed keeps fp32 copies to step."""
    if isinstance(optimizer, torch.optim.Optimizer):
        groups = [(group["params"], group["params"]) for group in optimizer.param_groups]
    else:
        groups = list(zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True))
    for parameters, owners in groups:
        for parameter, owner in zip(parameters, owners, strict=True):
            yield ParameterShard(names[id(parameter)], 0, parameter.numel(), owner, 0)


def _parts_of_groups(zero: Any, names: dict[int, str]) -> Iterator[ParameterShard]:
    """ZeRO 1 and 2: a contiguous part of each group's parameters laid end to end."""
    for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is not None:
                source, target = mapping.lp_fragment_address, mapping.hp_fragment_address
                name = names[id(parameter)]
                yield ParameterShard(name, source.start, source.numel, flat, target.start)


def _parts_of_parameters(zero: Any, names: dict[int, str]) -> Iterator[ParameterShard]:
    """ZeRO 3: an equal part of every parameter, the last one padded."""
    for group, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        offset = 0
        for parameter in group:
            padded = parameter.partition_numel()
            start = dist.get_rank(parameter.ds_process_group) * padded
            length = min(padded, parameter.ds_numel - start)
            if length > 0:
                yield ParameterShard(names[id(parameter)], start, length, flat, offset)
            offset += padded


def partition(parameters: list[torch.nn.Parameter], settings: dict[str, Any]) -> None:
    """Divide parameters among the ranks as ZeRO 3 does; each rank keeps its part. A collective."""
    if not parameters:
        return
    holder = torch.nn.Module()
    for number, parameter in enumerate(parameters):
        holder.register_parameter(str(number), parameter)
    deepspeed.zero.Init(module=holder, config_dict_or_path=settings, dtype=parameters[0].dtype)


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """Return the shape of a parameter, of which ZeRO 3 may have left a part here."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def is_partitioned(parameter: torch.Tensor) -> bool:
    """Return whether ZeRO 3 divided a parameter among the workers."""
    return hasattr(parameter, "ds_id")


def disable_shared_memory_collectives() -> None:
    """Keep DeepSpeed from compiling an all-reduce over shared memory; gloo serves without it."""
    __compatible_ops__["deepspeed_shm_comm"] = False


def initialize(model: Any, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Any:
    """Return DeepSpeed's engine, which sums gradients in the format that the settings ask for.

    For bf16 with sums in fp32, DeepSpeed has no ZeRO 0, and takes an optimizer of another kind for
    ZeRO 1 than for 2 and 3, though that of 2 can do both. torch itself keeps a parameter's gradient
    in another format than the parameter since 2.10, which serves ZeRO 0.
    """
    bf16 = settings["bf16"]["enabled"]
    fp32_sums = bf16 and settings.get("data_types", {}).get("grad_accum_dtype") == "fp32"
    alone = settings["zero_optimization"]["stage"] == 0
    if fp32_sums and alone:
        settings = {key: value for key, value in settings.items() if key != "data_types"}
    with _one_kind_of_zero():
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    if fp32_sums and alone:
        for parameter in engine.module.parameters():
            parameter.grad_dtype = torch.float32
    return engine


@contextmanager
def _one_kind_of_zero() -> Iterator[None]:
    """Let engines that are built take ZeRO's own optimizer for stage 1 at any format of sums."""
    decide = DeepSpeedEngine._do_optimizer_sanity_check

    def decide_for_zero(engine: Any, optimizer: Any) -> Any:
        kind = decide(engine, optimizer)
        return ZERO_OPTIMIZATION if kind == BFLOAT16 else kind

    DeepSpeedEngine._do_optimizer_sanity_check = decide_for_zero
    try:
        yield
    finally:
        DeepSpeedEngine._do_optimizer_sanity_check = decide


def loss_scale(engine: Any) -> float | None:
    """Return the factor of fp16's loss, which DeepSpeed searches; None in other formats."""
    if not engine.fp16_enabled():
        return None
    return float(_scaler(engine).cur_scale)


def set_loss_scale(engine: Any, scale: float) -> None:
    """Go on with the factor that a checkpoint stored, instead of searching it again."""
    if engine.fp16_enabled():
        _scaler(engine).cur_scale = scale


def _scaler(engine: Any) -> Any:
    """Return what holds the scale: ZeRO's scaler, or at ZeRO 0 the optimizer itself."""
    return getattr(engine.optimizer, "loss_scaler", engine.optimizer)


def release_engine(engine: Any) -> None:
    """Free an engine's weights, gradients and optimizer state before another one is built.

    DeepSpeed's `destroy` removes hooks and leaves cycles behind. Those of ZeRO 3 pass through
    autograd, where Python's collector does not see them: the objects on them are emptied, so that
    only modules without parameters stay. The engine and its module cannot be used afterwards.
    """
    engine.destroy()
    zero = engine.optimizer
    gathering = getattr(zero, "parameter_offload", None)
    cycles = [*engine.module.modules(), getattr(gathering, "param_coordinator", None), gathering]
    if not isinstance(zero, torch.optim.Optimizer):
        cycles.append(zero)
    FWD_MODULE_STACK.clear()
    for part in (*cycles, engine):
        if part is not None:
            vars(part).clear()
    gc.collect()


def wrap_collectives(
    names: Iterable[str], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Replace collectives of DeepSpeed's present backend by what `wrap` makes of them.

    Args:
        names: methods of the backend; those that it does not have are left out.
        wrap: receives the method as its class defines it, so that calling this again (after a
            rollback) does not wrap it twice.
    """
    from deepspeed.comm import comm

    backend = comm.cdb
    for name in names:
        method = getattr(type(backend), name, None)
        if method is not None:
            setattr(backend, name, wrap(method.__get__(backend)))
