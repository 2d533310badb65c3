"""The optimizer's state of a checkpoint as whole tensors in files of their own.

A checkpoint holds the pieces that its workers owned. A kit has one tensor for each parameter and
kind, `PARAMETER|0|KIND`, which is the layout of a worker that owns everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from perennial.training.model.shards import (
    TensorInfo,
    cut_in_order,
    safetensors_header,
)

LARGEST_BYTES = 5 * 10**9
"""Files of the state are not larger, unless one tensor is."""
_COPIED_ELEMENTS = 16 << 20


class _Piece(NamedTuple):
    """A run of a tensor's elements: the first one, their number, and the key in an open file."""

    start: int
    length: int
    dtype: str
    key: str
    handle: Any


class WholeState:
    """The tensors in the optimizer's files of a checkpoint, put together from their pieces.

    Use it as a context manager: it keeps the files open.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        """Find the pieces in files, which are those of all workers."""
        self._stack = ExitStack()
        self._pieces: defaultdict[tuple[str, str], list[_Piece]] = defaultdict(list)
        for path in files:
            handle = self._stack.enter_context(safe_open(path, framework="pt"))
            keys: Iterable[str] = handle.keys()
            for key in keys:
                parameter, start, kind = key.rsplit("|", 2)
                stored = handle.get_slice(key)
                piece = _Piece(int(start), stored.get_shape()[0], stored.get_dtype(), key, handle)
                self._pieces[parameter, kind].append(piece)
        for (parameter, kind), pieces in self._pieces.items():
            _check_whole(f"{parameter}'s {kind}", pieces)

    def __enter__(self) -> WholeState:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of tensors."""
        return tuple(dict.fromkeys(kind for _, kind in self._pieces))

    def fill(self, kind: str, parameters: dict[str, torch.Tensor]) -> list[str]:
        """Copy tensors of one kind into tensors by the parameters' names; return what is absent."""
        absent = []
        for name, target in parameters.items():
            pieces = self._pieces.get((name, kind), [])
            flat = target.view(-1)
            for piece in pieces:
                values = piece.handle.get_tensor(piece.key)
                flat[piece.start : piece.start + piece.length].copy_(values)
            if sum(piece.length for piece in pieces) != flat.numel():
                absent.append(name)
        return absent

    def write(self, folder: Path, most_bytes: int = LARGEST_BYTES) -> list[Path]:
        """Write the tensors, flat, into files of a folder in the order of the workers' files.

        Args:
            folder: local; must exist.
            most_bytes: of one file, unless one tensor is larger.
        """
        infos = {f"{name}|0|{kind}": _info(its) for (name, kind), its in self._pieces.items()}
        pieces = {f"{name}|0|{kind}": its for (name, kind), its in self._pieces.items()}
        lists = cut_in_order({key: info.size_bytes for key, info in infos.items()}, most_bytes)
        written = []
        for number, keys in enumerate(lists, 1):
            path = folder / f"state-{number:05d}-of-{len(lists):05d}.safetensors"
            with path.open("wb") as sink:
                sink.write(safetensors_header((key, infos[key]) for key in keys))
                for key in keys:
                    _copy(pieces[key], sink)
            written.append(path)
        return written


def _check_whole(name: str, pieces: list[_Piece]) -> None:
    """Put pieces in order. Raises ValueError where one is missing or of another type."""
    pieces.sort(key=lambda piece: piece.start)
    end = 0
    for piece in pieces:
        if piece.start != end:
            raise ValueError(f"the checkpoint lacks a part of {name}, at element {end:,}")
        end += piece.length
    if len({piece.dtype for piece in pieces}) > 1:
        raise ValueError(f"the checkpoint has {name} in several types")


def _info(pieces: Sequence[_Piece]) -> TensorInfo:
    length = sum(piece.length for piece in pieces)
    item = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2}[pieces[0].dtype]
    return TensorInfo(pieces[0].dtype, (length,), length * item)


def _copy(pieces: Sequence[_Piece], sink: Any) -> None:
    """Write the elements of a tensor in bounded memory."""
    for piece in pieces:
        stored = piece.handle.get_slice(piece.key)
        for first in range(0, piece.length, _COPIED_ELEMENTS):
            values = stored[first : min(first + _COPIED_ELEMENTS, piece.length)]
            sink.write(values.contiguous().view(torch.uint8).numpy().data)
