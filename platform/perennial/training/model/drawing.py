"""Random models that are drawn straight into their files, with a part of them in memory.

One generator draws all weights while the modules are built and again while they are initialised, so
no tensor can be drawn without those before it. So the model is built as any other, its weights
being pages of its files, which are let go as soon as they are written.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from perennial.training.model.config import random_model
from perennial.training.model.shards import (
    LARGEST_BYTES,
    cut_in_order,
    file_names,
    live_weights,
    safetensors_header,
    tensor_info,
    write_descriptions,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_KEPT_BYTES = 64 << 20
"""Bytes that are written before pages are let go; more than this and a tensor never stay."""


def draw_model(
    config: PretrainedConfig, seed: int, init: str, folder: Path, largest_bytes: int = LARGEST_BYTES
) -> None:
    """Write the files of the model that `random_model` returns.

    Args:
        config: of the architecture.
        seed: of the weights.
        init: as `model.init` of the run file.
        folder: local; it must not exist.
        largest_bytes: of a file; one tensor may be larger.
    """
    built: list[torch.nn.Parameter] = []
    with torch.device("meta"), _registering(built.append):
        hollow = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = live_weights(hollow)
    names = {id(tensor): name for name, tensor in tensors.items()}
    lists = cut_in_order({name: tensor.nbytes for name, tensor in tensors.items()}, largest_bytes)
    contents = dict(zip(file_names(len(lists)), lists, strict=True))
    sizes = {file: {n: tensors[n].nbytes for n in names} for file, names in contents.items()}
    write_descriptions(hollow, folder, sizes)  # first: it removes files of weights
    files = _Files(folder, {f: {n: tensors[n] for n in names} for f, names in contents.items()})
    order = iter([names.get(id(parameter)) for parameter in built])

    def place(parameter: torch.nn.Parameter) -> None:
        parameter.data = files.place(next(order), parameter)

    with _registering(place), _LetGo(files):
        files.complete(live_weights(random_model(config, seed, init)))


class _Files:
    """Mapped files of a model, and of what is drawn and left out of it (a head that is tied)."""

    def __init__(self, folder: Path, contents: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Create the files, with their headers and room for these tensors, which have no data."""
        self._folder = folder
        self._maps: list[mmap.mmap] = []
        self._places: dict[str, torch.Tensor] = {}
        for file, tensors in contents.items():
            header = safetensors_header((name, tensor_info(t)) for name, t in tensors.items())
            with (folder / file).open("w+b") as target:
                target.write(header)
                target.flush()
                pages = self._map(target, len(header) + sum(t.nbytes for t in tensors.values()))
            start = len(header)
            for name, tensor in tensors.items():
                self._places[name] = _view(pages, start, tensor)
                start += tensor.nbytes

    def place(self, name: str | None, parameter: torch.Tensor) -> torch.Tensor:
        """Return a parameter's place, with its present numbers; None is for no tensor's name."""
        if name is None:
            with tempfile.TemporaryFile(dir=self._folder) as unnamed:
                place = _view(self._map(unnamed, max(1, parameter.nbytes)), 0, parameter)
        else:
            place = self._places[name]
        return place.copy_(parameter.detach())

    def complete(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors that are in memory: buffers, and parameters that were replaced."""
        names = {place.data_ptr(): name for name, place in self._places.items() if place.numel()}
        for name, tensor in tensors.items():
            placed_as = names.get(tensor.data_ptr(), None if tensor.numel() else name)
            if placed_as is None:
                self._places[name].copy_(tensor.detach())
            elif placed_as != name:
                raise RuntimeError(f"{name} was built where {placed_as} was without numbers")

    def let_go(self) -> None:
        """Take the files' pages out of this process's memory; the files keep them."""
        for pages in self._maps:
            pages.madvise(mmap.MADV_DONTNEED)

    def _map(self, target: IO[bytes], size_bytes: int) -> mmap.mmap:
        # Room on the disk is taken now: a page without any would end the process at a later write.
        os.posix_fallocate(target.fileno(), 0, size_bytes)
        pages = mmap.mmap(target.fileno(), size_bytes)
        self._maps.append(pages)
        return pages


def _view(pages: mmap.mmap, start: int, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the dtype and shape of `like` whose numbers are the bytes from `start`."""
    if not like.numel():
        return torch.empty(like.shape, dtype=like.dtype)
    flat = torch.frombuffer(pages, dtype=like.dtype, count=like.numel(), offset=start)
    return flat.view(like.shape)


class _LetGo(TorchFunctionMode):
    """Lets a model's pages go whenever enough of them were written."""

    def __init__(self, files: _Files) -> None:
        super().__init__()
        self._files = files
        self._written_bytes = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch; what it returns may be a tensor that it wrote."""
        result = function(*args, **kwargs or {})
        if isinstance(result, torch.Tensor):
            self._written_bytes += result.nbytes
        if self._written_bytes > _KEPT_BYTES:
            self._files.let_go()
            self._written_bytes = 0
        return result


@contextmanager
def _registering(act: Callable[[torch.nn.Parameter], None]) -> Iterator[None]:
    """Call `act` with every parameter that a module gets inside the block, once each, in order."""
    known: dict[int, torch.nn.Parameter] = {}  # which live on, or another would have their id

    def register(_module: Any, _name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and id(parameter) not in known:
            known[id(parameter)] = parameter
            act(parameter)

    handle = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()
