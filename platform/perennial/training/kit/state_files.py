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

from perennial.training.engine.pieces import Columns, Elements, overlaps, parse_key
from perennial.training.model.shards import (
    TensorInfo,
    cut_in_order,
    safetensors_header,
)

LARGEST_BYTES = 5 * 10**9
"""Files of the state are not larger, unless one tensor is."""
_COPIED_ELEMENTS = 16 << 20


class _Piece(NamedTuple):
    """A span of a tensor's elements, and the key in an open file."""

    span: Elements
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
                parameter, kind, start, columns = parse_key(key)
                stored = handle.get_slice(key)
                span = Elements(start, stored.get_shape()[0], columns)
                piece = _Piece(span, stored.get_dtype(), key, handle)
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
            if sum(piece.span.length for piece in pieces) != target.numel():
                absent.append(name)
            else:
                _fill(target.view(-1), pieces)
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
    pieces.sort(key=lambda piece: (*(piece.span.columns or ()), piece.span.start))
    ends: dict[Columns | None, int] = {}
    for piece in pieces:
        end = ends.get(piece.span.columns, 0)
        if piece.span.start != end:
            raise ValueError(f"the checkpoint lacks a part of {name}, at element {end:,}")
        ends[piece.span.columns] = piece.span.end
    if len({piece.dtype for piece in pieces}) > 1:
        raise ValueError(f"the checkpoint has {name} in several types")
    if None not in ends:
        _check_columns(name, ends)


def _check_columns(name: str, ends: dict[Columns | None, int]) -> None:
    """Check that pieces of columns, in order, have all of them, in equal numbers of rows."""
    reached, heights = 0, set()
    for columns, end in ends.items():
        assert columns is not None
        first, last, width = columns
        if first == reached:
            reached = last
            heights.add(divmod(end, last - first))
    if reached != width or len(heights) > 1 or heights.pop()[1]:
        raise ValueError(f"the checkpoint lacks a part of {name}, at column {reached:,}")


def _info(pieces: Sequence[_Piece]) -> TensorInfo:
    length = sum(piece.span.length for piece in pieces)
    item = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2}[pieces[0].dtype]
    return TensorInfo(pieces[0].dtype, (length,), length * item)


def _fill(target: torch.Tensor, pieces: Sequence[_Piece]) -> None:
    """Copy all pieces of a tensor into one `(length,)`."""
    for piece in pieces:
        values = piece.handle.get_tensor(piece.key)
        for here, there in overlaps(Elements(0, len(target)), piece.span):
            here.view(target).copy_(there.view(values))


def _copy(pieces: Sequence[_Piece], sink: Any) -> None:
    """Write the elements of a tensor: in bounded memory, or whole where columns are divided."""
    if pieces[0].span.columns is not None:
        first = pieces[0].handle.get_tensor(pieces[0].key)
        whole = torch.empty(sum(piece.span.length for piece in pieces), dtype=first.dtype)
        _fill(whole, pieces)
        sink.write(whole.view(torch.uint8).numpy().data)
        return
    for piece in pieces:
        stored = piece.handle.get_slice(piece.key)
        for start in range(0, piece.span.length, _COPIED_ELEMENTS):
            values = stored[start : min(start + _COPIED_ELEMENTS, piece.span.length)]
            sink.write(values.contiguous().view(torch.uint8).numpy().data)
