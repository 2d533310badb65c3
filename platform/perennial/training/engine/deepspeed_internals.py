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
from perennial.training.engine.pieces import Columns, Elements

# DeepSpeed's autotuner, which nothing here uses, imports MLflow wherever it is installed: 1,000
# modules and 50 MB in every worker.
with absent("mlflow"):
    import deepspeed as deepspeed
    from deepspeed.checkpoint.constants import DS_AUTOTP_UC_META
    from deepspeed.ops import __compatible_ops__
    from deepspeed.runtime.engine import BFLOAT16, ZERO_OPTIMIZATION, DeepSpeedEngine
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.utils import groups


@dataclass(frozen=True)
class ParameterShard:
    """A run of one parameter's elements whose optimizer state this worker holds, and its place.

    parameter: its name in the model; start, length: its elements, flattened, or those of `columns`.
    owner: the fp32 tensor that the optimizer steps; offset: of the shard's elements in it.
    columns: of the parameter that the workers of a tensor-parallel group divide; None where they
        divide its rows, or all have the whole of it.
    alike: whether every worker of a tensor-parallel group has the same.
    hidden: whether the optimizer has it in a group of hidden matrices, which it needs whole.
    """

    parameter: str
    start: int
    length: int
    owner: torch.Tensor
    offset: int
    columns: Columns | None = None
    alike: bool = False
    hidden: bool = False

    @property
    def span(self) -> Elements:
        """Return which elements of the parameter these are."""
        return Elements(self.start, self.length, self.columns)

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
    """Yield what this worker holds, in the order of the tensors that the optimizer steps."""
    parameters = dict(engine.module.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    stage = engine.zero_optimization_stage()
    kinds = {0: _whole_parameters, 1: _parts_of_groups, 2: _parts_of_groups}
    for shard in kinds.get(stage, _parts_of_parameters)(engine.optimizer, names):
        yield _placed(shard, tensor_slice(parameters[shard.parameter]))


def _placed(shard: ParameterShard, its: TensorSlice | None) -> ParameterShard:
    """Return a shard of what this worker has of a parameter as one of the whole parameter."""
    if its is None:
        return replace(shard, alike=True)
    if its.dim == 0:
        return replace(shard, start=shard.start + its.first * its.whole[1:].numel())
    return replace(shard, columns=Columns(its.first, its.first + its.size, its.whole[1]))


def _whole_parameters(optimizer: Any, names: dict[int, str]) -> Iterator[ParameterShard]:
    """ZeRO 0: every worker holds everything; below fp32 DeepSpeed keeps fp32 copies to step."""
    groups = optimizer.param_groups
    stepped = [group["params"] for group in groups]
    alone = isinstance(optimizer, torch.optim.Optimizer)
    trained = stepped if alone else optimizer.fp16_groups
    for group, parameters, owners in zip(groups, trained, stepped, strict=True):
        hidden = group.get("hidden", False)
        for parameter, owner in zip(parameters, owners, strict=True):
            name = names[id(parameter)]
            yield ParameterShard(name, 0, parameter.numel(), owner, 0, hidden=hidden)


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


@dataclass(frozen=True)
class TensorSlice:
    """The part of a parameter that this worker of a tensor-parallel group computes with.

    dim: that is divided, 0 (rows) or 1 (columns); first, size: of this worker's.
    sizes: of all workers', in order.
    whole: shape of the parameter.
    """

    dim: int
    first: int
    size: int
    sizes: tuple[int, ...]
    whole: torch.Size


def tensor_slice(parameter: torch.Tensor) -> TensorSlice | None:
    """Return what of a parameter this worker has; None where it has the whole of it."""
    meta = getattr(parameter, DS_AUTOTP_UC_META, None)
    if meta is None or meta["replicated"]:
        return None
    sizes, dim = tuple(meta["partition_sizes"]), meta["partition_dim"]
    rank = dist.get_rank(groups.get_tensor_model_parallel_group())
    whole = torch.Size(meta["original_shape"])
    return TensorSlice(dim, sum(sizes[:rank]), sizes[rank], sizes, whole)


def workers_of_one_model(engine: Any) -> int:
    """Return how many workers of a tensor-parallel group compute a model; 1 without one."""
    return int(engine.autotp_size()) or 1


def gather_slices(parameter: torch.Tensor) -> torch.Tensor:
    """Return the whole of a parameter that a tensor-parallel group divides. Its collective."""
    its = tensor_slice(parameter)
    assert its is not None
    most = list(its.whole)
    most[its.dim] = max(its.sizes)
    # Collectives want equal shapes, and rows of a vocabulary may not divide.
    mine = parameter.new_zeros(most)
    mine.narrow(its.dim, 0, its.size).copy_(parameter.detach())
    parts = [torch.empty_like(mine) for _ in its.sizes]
    dist.all_gather(parts, mine, group=groups.get_tensor_model_parallel_group())
    pairs = zip(parts, its.sizes, strict=True)
    return torch.cat([part.narrow(its.dim, 0, size) for part, size in pairs], dim=its.dim)


def sum_over_slices(number: torch.Tensor) -> torch.Tensor:
    """Return the sum of a number over the workers of this worker's tensor-parallel group."""
    total = number.clone()
    dist.all_reduce(total, group=groups.get_tensor_model_parallel_group())
    return total


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """Return the shape of a parameter, of which this worker may have a part."""
    its = tensor_slice(parameter)
    if its is not None:
        return its.whole
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

    Raises RuntimeError where this process had an engine of another tensor-parallel layout.
    """
    _check_layout(settings.get("tensor_parallel", {}).get("autotp_size", 1))
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


def _check_layout(together: int) -> None:
    """Refuse a second layout: DeepSpeed goes on with the groups of a process's first division."""
    if groups.mpu is None:
        return
    before = groups.get_tensor_model_parallel_world_size()
    if before != together:
        raise RuntimeError(
            f"this process computed models with {before} workers together; "
            f"with {together} it takes new workers"
        )


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
