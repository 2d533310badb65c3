"""Optimizer state in a layout independent of the world size, for every ZeRO stage.

Every worker writes the pieces of each parameter's moments that it owns, named by parameter and
offset. A worker group of any size, under any ZeRO stage, reads back the pieces that overlap its
own, so a resize needs no conversion, and nothing is pickled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open

from perennial.optimizers import OptimizerConfig
from perennial.training.engine.deepspeed_internals import (
    ParameterShard,
    inner_optimizer,
    owned_shards,
    workers_of_one_model,
)
from perennial.training.engine.grid import Grid
from perennial.training.engine.pieces import Elements, overlaps, parse_key, piece_key

_MASTER = "master"


def optimizer_state(engine: Any, config: OptimizerConfig) -> tuple[dict[str, torch.Tensor], int]:
    """Return this worker's pieces of the state (and fp32 weights), and the optimizer steps taken.

    The tensors `(length,)` are the live ones, to be written before the next step. Steps that fp16
    skipped for an overflow are not counted: the optimizer did not see them.
    """
    stepped = inner_optimizer(engine)
    keep_master = next(engine.module.parameters()).dtype != torch.float32
    tensors: dict[str, torch.Tensor] = {}
    steps = 0
    grid = Grid.here(workers_of_one_model(engine))
    for piece in owned_shards(engine):
        if engine.zero_optimization_stage() == 0:
            piece = piece.part(grid.data_rank, grid.data_size)
        if not piece.length or (piece.alike and not grid.leads):
            continue
        state = stepped.state.get(piece.owner, {})
        steps = max(steps, int(state.get("step", 0)))
        sources = {name: state.get(name) for name in config.tensors_of(hidden=piece.hidden)}
        if keep_master:
            sources[_MASTER] = piece.owner
        for name, tensor in sources.items():
            tensors[piece_key(piece.parameter, piece.start, piece.columns, name)] = (
                torch.zeros(piece.length) if tensor is None else piece.slice(tensor.detach())
            )
    return tensors, steps


def load_master_weights(
    engine: Any, files: Iterable[Path], first_new: Mapping[str, int] = MappingProxyType({})
) -> None:
    """Fill this worker's fp32 weights from files of workers that computed in fewer bits.

    For the arguments and errors see `load_optimizer`.
    """
    stored = _Stored(files, first_new)
    for piece in owned_shards(engine):
        stored.fill(piece.slice(piece.owner.data), piece, _MASTER)


def load_optimizer(
    engine: Any,
    config: OptimizerConfig,
    files: Iterable[Path],
    steps: int,
    first_new: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Fill this worker's pieces of the state and fp32 weights from files of any number of workers.

    Args:
        engine: the engine.
        config: of its optimizer.
        files: are asked for one by one until all is there, so those that are needed come first.
        steps: optimizer steps that the moments have taken.
        first_new: by parameter, the first element that is new since the files were written: its
            moments are zero, and its fp32 weight is the model's.

    Raises:
        RuntimeError: the files do not cover a piece.
    """
    stepped = inner_optimizer(engine)
    stored = _Stored(files, first_new)
    stepped.state.clear()
    for piece in owned_shards(engine):
        state, names = stepped.state[piece.owner], config.tensors_of(hidden=piece.hidden)
        if not state:
            # Where the weights are: a fused kernel of torch reads the count on their device.
            state["step"] = torch.tensor(float(steps), device=piece.owner.device)
            state |= {name: torch.zeros_like(piece.owner) for name in names}
        for name in names:
            stored.fill(piece.slice(state[name]), piece, name)
        if stored.has(piece.parameter, _MASTER):
            stored.fill(piece.slice(piece.owner.data), piece, _MASTER)


def forget_direction(engine: Any, config: OptimizerConfig) -> None:
    """Zero the averages of the gradient and keep the rest of the state, with its count of steps."""
    for state in inner_optimizer(engine).state.values():
        for name in config.direction_tensors:
            if name in state:
                state[name].zero_()


class _Stored:
    """The pieces in optimizer files, found by parameter and kind; no more files than needed."""

    def __init__(self, files: Iterable[Path], first_new: Mapping[str, int]) -> None:
        self._first_new = first_new
        self._unopened = iter(files)
        self._index: defaultdict[tuple[str, str], list[tuple[Elements, str, Any]]] = defaultdict(
            list
        )

    def has(self, parameter: str, kind: str) -> bool:
        """Return whether a file that was opened has some of it."""
        return (parameter, kind) in self._index

    def fill(self, target: torch.Tensor, piece: ParameterShard, kind: str) -> None:
        """Copy what overlaps `piece` into `target`, which is `piece.length` long.

        Elements that are new since the files were written stay as they are.
        """
        mine = self._known_part(piece)
        missing = mine.length
        if missing <= 0:
            return
        for span, key, handle in self._spans(piece.parameter, kind):
            for here, there in overlaps(mine, span):
                values = handle.get_slice(key)[there.offset : there.end]
                here.view(target).copy_(there.moved(there.offset).view(values))
                missing -= here.rows * here.columns
            if not missing:
                return
        raise RuntimeError(
            f"the checkpoint lacks {missing} of {piece.length} elements of "
            f"{piece.parameter}'s {kind}"
        )

    def _known_part(self, piece: ParameterShard) -> Elements:
        """Return the elements of a piece that are not new since the files were written."""
        span = piece.span
        if piece.parameter not in self._first_new:
            return span
        assert span.columns is None, "rows for new entries, in a matrix that is divided by columns"
        return replace(span, length=min(span.end, self._first_new[piece.parameter]) - span.start)

    def _spans(self, parameter: str, kind: str) -> Iterator[tuple[Elements, str, Any]]:
        """Yield what the opened files have of it; then what every further file has."""
        known = self._index[parameter, kind]
        yielded = 0
        while True:
            while yielded < len(known):
                yield known[yielded]
                yielded += 1
            path = next(self._unopened, None)
            if path is None:
                return
            self._open(path)

    def _open(self, path: Path) -> None:
        handle = safe_open(path, framework="pt")
        keys: Iterable[str] = handle.keys()  # type: ignore[no-untyped-call]
        for key in keys:
            parameter, kind, start, columns = parse_key(key)
            stored: Any = handle.get_slice(key)  # type: ignore[no-untyped-call]
            span = Elements(start, stored.get_shape()[0], columns)
            self._index[parameter, kind].append((span, key, handle))
