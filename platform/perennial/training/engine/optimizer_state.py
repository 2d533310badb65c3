"""The optimizer's state in a layout that knows no world size, for every ZeRO stage.

Every worker writes the pieces of each parameter's moments that it owns, named by parameter and
offset. A worker group of any size, under any ZeRO stage, reads back the pieces that overlap its
own, so a resize needs no conversion, and nothing is pickled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open

MOMENTS = ("exp_avg", "exp_avg_sq")
_MASTER = "master"


@dataclass(frozen=True)
class _Piece:
    """A run of one parameter's elements whose state this worker holds, and where it lies.

    parameter: its name in the model; start, length: its elements, flattened.
    owner: the tensor that the optimizer steps, and its elements' `offset` in it.
    """

    parameter: str
    start: int
    length: int
    owner: torch.Tensor
    offset: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This piece's elements `(length,)` of a tensor laid out like the owner."""
        return tensor.view(-1).narrow(0, self.offset, self.length)

    def part(self, rank: int, world_size: int) -> _Piece:
        """What `rank` writes of a piece that every rank holds."""
        first, last = (self.length * r // world_size for r in (rank, rank + 1))
        return replace(
            self, start=self.start + first, offset=self.offset + first, length=last - first
        )


def optimizer_state(engine: Any) -> tuple[dict[str, torch.Tensor], int]:
    """This worker's pieces of the moments (and fp32 weights), and the optimizer steps taken.

    The tensors `(length,)` are the live ones, to be written before the next step. Steps that fp16
    skipped for an overflow are not counted: Adam did not see them.
    """
    stepped = _stepped(engine)
    keep_master = next(engine.module.parameters()).dtype != torch.float32
    tensors: dict[str, torch.Tensor] = {}
    steps = 0
    for piece in _pieces(engine):
        if engine.zero_optimization_stage() == 0:
            piece = piece.part(dist.get_rank(), dist.get_world_size())
        if not piece.length:
            continue
        state = stepped.state.get(piece.owner, {})
        steps = max(steps, int(state.get("step", 0)))
        sources = {name: state.get(name) for name in MOMENTS}
        if keep_master:
            sources[_MASTER] = piece.owner
        for name, tensor in sources.items():
            tensors[f"{piece.parameter}|{piece.start}|{name}"] = (
                torch.zeros(piece.length) if tensor is None else piece.of(tensor.detach())
            )
    return tensors, steps


def load_optimizer(engine: Any, files: Iterable[Path], steps: int) -> None:
    """Fill this worker's pieces from files that any number of workers wrote.

    files: are asked for one by one until all is there, so those that are needed come first.
    Raises RuntimeError when the files leave a part of a piece unwritten.
    """
    stepped = _stepped(engine)
    stored = _Stored(files)
    stepped.state.clear()
    for piece in _pieces(engine):
        state = stepped.state[piece.owner]
        if not state:
            state["step"] = torch.tensor(float(steps))
            state |= {name: torch.zeros_like(piece.owner) for name in MOMENTS}
        for name in MOMENTS:
            stored.fill(piece.of(state[name]), piece, name)
        if stored.has(piece.parameter, _MASTER):
            stored.fill(piece.of(piece.owner.data), piece, _MASTER)


def forget_direction(engine: Any) -> None:
    """Zero the first moments and keep the second ones, with the steps that they were made in.

    torch's AdamW has one step count for the bias of both moments. Kept, the second moment is
    corrected as it must be: it is the average of that many gradients. The first moment then counts
    as unbiased while it is still near zero, so the updates grow to their size over the first
    1 / (1 - beta_1) steps (10 by default): a short warmup. Starting the count again would
    instead divide a whole second moment by 1 - beta_2 and shrink the first updates by
    sqrt(1 - beta_2), for 1 / (1 - beta_2) steps.
    """
    for state in _stepped(engine).state.values():
        state["exp_avg"].zero_()


def _stepped(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer at the heart of DeepSpeed's wrappers."""
    outer = engine.optimizer
    inner: torch.optim.Optimizer = (
        outer if isinstance(outer, torch.optim.Optimizer) else outer.optimizer
    )
    return inner


def _pieces(engine: Any) -> Iterator[_Piece]:
    """What this worker holds, in the order of the tensors that the optimizer steps."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return _whole(engine.optimizer, names)
    return (_shards if stage == 3 else _fragments)(engine.optimizer, names)


def _whole(optimizer: Any, names: dict[int, str]) -> Iterator[_Piece]:
    """ZeRO 0: every worker holds everything; below fp32 DeepSpeed keeps fp32 copies to step."""
    if isinstance(optimizer, torch.optim.Optimizer):
        groups = [(group["params"], group["params"]) for group in optimizer.param_groups]
    else:
        groups = list(zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True))
    for parameters, owners in groups:
        for parameter, owner in zip(parameters, owners, strict=True):
            yield _Piece(names[id(parameter)], 0, parameter.numel(), owner, 0)


def _fragments(zero: Any, names: dict[int, str]) -> Iterator[_Piece]:
    """ZeRO 1 and 2: a contiguous part of each group's parameters laid end to end."""
    for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is not None:
                source, target = mapping.lp_fragment_address, mapping.hp_fragment_address
                name = names[id(parameter)]
                yield _Piece(name, source.start, source.numel, flat, target.start)


def _shards(zero: Any, names: dict[int, str]) -> Iterator[_Piece]:
    """ZeRO 3: an equal part of every parameter, the last one padded."""
    for group, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        offset = 0
        for parameter in group:
            padded = parameter.partition_numel()
            start = dist.get_rank(parameter.ds_process_group) * padded
            length = min(padded, parameter.ds_numel - start)
            if length > 0:
                yield _Piece(names[id(parameter)], start, length, flat, offset)
            offset += padded


class _Stored:
    """The pieces in optimizer files, found by parameter and kind; no more files than needed."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._unopened = iter(files)
        self._index: defaultdict[tuple[str, str], list[tuple[int, str, Any]]] = defaultdict(list)

    def has(self, parameter: str, kind: str) -> bool:
        """Whether a file that was opened has some of it."""
        return (parameter, kind) in self._index

    def fill(self, target: torch.Tensor, piece: _Piece, kind: str) -> None:
        """Copy what overlaps `piece` into `target`, which is `piece.length` long."""
        missing = piece.length
        for start, key, handle in self._runs(piece.parameter, kind):
            values = handle.get_slice(key)
            first = max(start, piece.start)
            last = min(start + values.get_shape()[0], piece.start + piece.length)
            if first < last:
                target[first - piece.start : last - piece.start].copy_(
                    values[first - start : last - start]
                )
                missing -= last - first
            if not missing:
                return
        raise RuntimeError(
            f"the checkpoint lacks {missing} of {piece.length} elements of "
            f"{piece.parameter}'s {kind}"
        )

    def _runs(self, parameter: str, kind: str) -> Iterator[tuple[int, str, Any]]:
        """What the opened files have of it; then what each further file has."""
        known = self._index[parameter, kind]
        told = 0
        while True:
            while told < len(known):
                yield known[told]
                told += 1
            path = next(self._unopened, None)
            if path is None:
                return
            self._open(path)

    def _open(self, path: Path) -> None:
        handle = safe_open(path, framework="pt")
        keys: Iterable[str] = handle.keys()  # type: ignore[no-untyped-call]
        for key in keys:
            parameter, start, kind = key.rsplit("|", 2)
            self._index[parameter, kind].append((int(start), key, handle))
