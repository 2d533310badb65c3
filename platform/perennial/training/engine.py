"""The DeepSpeed engine, and its optimizer state in a layout that knows no world size.

Every worker writes the pieces of each parameter's moments that it owns, named by parameter and
offset. A worker group of any size reads back the pieces that overlap its own, so a resize needs no
conversion, and nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
from deepspeed.ops import __compatible_ops__
from safetensors import safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from perennial.spec.run import TrainingSpec

MOMENTS = ("exp_avg", "exp_avg_sq")
_MASTER = "master"


def build_engine(
    model: torch.nn.Module, spec: TrainingSpec, global_batch: int, world_size: int
) -> Any:
    """A DeepSpeed engine around the model, with torch's AdamW and a constant global batch.

    Gradient accumulation takes up what `world_size` workers of `micro_batch` sequences leave.
    """
    # A shared-memory all-reduce that would be compiled on first use; gloo serves without it.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")
    optimizer = torch.optim.AdamW(
        _decay_groups(model, spec.weight_decay), lr=0.0, betas=spec.betas, eps=spec.epsilon
    )
    settings = {
        "train_batch_size": global_batch,
        "train_micro_batch_size_per_gpu": spec.micro_batch,
        "gradient_accumulation_steps": global_batch // (world_size * spec.micro_batch),
        "gradient_clipping": spec.gradient_clip,
        "zero_optimization": {"stage": spec.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": spec.precision == "bf16"},
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine


def set_eta(engine: Any, eta: float) -> None:
    """The learning rate of the next optimizer step, for every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = eta


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class _Piece:
    """A run of one parameter's elements that this worker owns, and where its state lies."""

    parameter: str
    start: int
    length: int
    offset: int
    flat: torch.Tensor


def _pieces(engine: Any) -> Iterator[_Piece]:
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    zero = engine.optimizer
    for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:
                continue
            source, target = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield _Piece(names[id(parameter)], source.start, source.numel, target.start, flat)


def save_optimizer(engine: Any, path: Path) -> int:
    """Write this worker's pieces of the moments (and fp32 weights); the optimizer steps taken."""
    zero = engine.optimizer
    keep_master = zero.bit16_groups[0][0].dtype != torch.float32
    tensors: dict[str, torch.Tensor] = {}
    steps = 0
    for piece in _pieces(engine):
        state = zero.optimizer.state[piece.flat]
        steps = int(state["step"])
        sources = {name: state[name] for name in MOMENTS}
        if keep_master:
            sources[_MASTER] = piece.flat.detach()
        for name, tensor in sources.items():
            values = tensor.narrow(0, piece.offset, piece.length).cpu().contiguous().clone()
            tensors[f"{piece.parameter}|{piece.start}|{name}"] = values
    save_file(tensors, path)
    return steps


def load_optimizer(engine: Any, folder: Path, steps: int) -> None:
    """Fill this worker's pieces from files that any number of workers wrote.

    Raises RuntimeError when the files leave a part of a piece unwritten.
    """
    zero = engine.optimizer
    stored = _Stored(folder)
    for flat in zero.single_partition_of_fp32_groups:
        zero.optimizer.state[flat] = {
            "step": torch.tensor(float(steps)),
            **{name: torch.zeros_like(flat) for name in MOMENTS},
        }
    for piece in _pieces(engine):
        state = zero.optimizer.state[piece.flat]
        for name in MOMENTS:
            stored.fill(state[name].narrow(0, piece.offset, piece.length), piece, name)
        if stored.has(piece.parameter, _MASTER):
            stored.fill(piece.flat.data.narrow(0, piece.offset, piece.length), piece, _MASTER)


class _Stored:
    """The pieces in a folder of optimizer files, found by parameter and kind."""

    def __init__(self, folder: Path) -> None:
        self._index: dict[tuple[str, str], list[tuple[int, str, Any]]] = {}
        for path in sorted(folder.glob("optimizer-*.safetensors")):
            handle = safe_open(path, framework="pt")
            keys: list[str] = list(handle.keys())  # type: ignore[no-untyped-call]
            for key in keys:
                parameter, start, kind = key.rsplit("|", 2)
                self._index.setdefault((parameter, kind), []).append((int(start), key, handle))

    def has(self, parameter: str, kind: str) -> bool:
        return (parameter, kind) in self._index

    def fill(self, target: torch.Tensor, piece: _Piece, kind: str) -> None:
        """Copy what overlaps `piece` into `target`, which is `piece.length` long."""
        missing = piece.length
        for start, key, handle in self._index.get((piece.parameter, kind), []):
            values = handle.get_tensor(key)
            first = max(start, piece.start)
            last = min(start + len(values), piece.start + piece.length)
            if first < last:
                target[first - piece.start : last - piece.start].copy_(
                    values[first - start : last - start]
                )
                missing -= last - first
        if missing:
            raise RuntimeError(
                f"the checkpoint lacks {missing} of {piece.length} elements of "
                f"{piece.parameter}'s {kind}"
            )
