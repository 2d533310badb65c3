"""Local files of a checkpoint, written from live tensors without copying them in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from perennial.training.checkpoint.staging import QueuedWork, tensor_bytes

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, ready: QueuedWork | None = None
) -> None:
    """Write `path` straight from the tensors' memory, over the file that is there.

    safetensors' own `save_file` needs copies of views and takes twice as long. A file that is
    written over in place keeps its pages in the system's cache, which halves the time again.

    Args:
        tensors: by name; live ones, which must not change meanwhile.
        path: a local file.
        ready: when those on a GPU have their values; default now.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as sink:
        _write(sink, len(text).to_bytes(8, "little") + text)
        for data in tensor_bytes(tensors.values(), ready):
            _write(sink, data)
        sink.truncate()


def write_model_folder(
    module: Any, weights: dict[str, torch.Tensor], folder: Path, ready: QueuedWork | None = None
) -> None:
    """Write `folder` with these weights, or write them over those that are there.

    weights: whole tensors by the module's names; a shared one once. They may be live, and views of
    one buffer, as ZeRO's are: transformers' own `save_pretrained` would take those for tied weights
    and copy them. It writes what belongs beside the weights.
    """
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.utils import SAFE_WEIGHTS_NAME

    if not folder.exists():
        module.save_pretrained(folder, state_dict={})
    stored = revert_weight_conversion(module, dict(weights))
    write_tensors(stored, folder / SAFE_WEIGHTS_NAME, ready)


def weights_are_rounded(folder: Path) -> bool:
    """Return whether a checkpoint's model holds its weights in fewer bits than fp32."""
    from safetensors import safe_open
    from transformers.utils import SAFE_WEIGHTS_NAME

    with safe_open(folder / SAFE_WEIGHTS_NAME, framework="pt") as stored:
        keys: list[str] = list(stored.keys())
        return any(stored.get_slice(key).get_dtype() in ("BF16", "F16") for key in keys)


def _write(sink: Any, data: Any) -> None:
    """Write all of it: one call to the system writes at most 2 GiB."""
    left = memoryview(data)
    while left:
        left = left[sink.write(left) :]
