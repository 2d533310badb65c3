"""Files of a stored model: a Hugging Face folder or a GGUF file, local or in S3."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from perennial.errors import InputError
from perennial.store import Store, open_store

_INDEX = "model.safetensors.index.json"
_DESCRIPTIONS = ("config.json", "generation_config.json", _INDEX)


@dataclass(frozen=True)
class ModelFiles:
    """A local folder that transformers can load a model from; `gguf` is the file's name in it.

    where: the path as the run file gives it.
    """

    where: str
    folder: Path
    gguf: str | None = None


def model_files(path: str, scratch: Path, *, weights: bool) -> ModelFiles:
    """Return the model's files on this machine: where they lie, or copied from S3 to `scratch`.

    weights: whether the tensors are wanted too; a GGUF file is always copied whole.
    Raises InputError when the path holds no model, or only pickled weights.
    """
    if path.endswith(".gguf"):
        return _gguf(path, scratch)
    source = open_store(path)
    names = {entry.key for entry in source.list() if "/" not in entry.key}
    if "config.json" not in names:
        raise _refused(path, "there is no config.json")
    tensors = _tensor_files(source, path, names)
    if source.is_local:
        return ModelFiles(path, Path(source.url))
    for name in [*(n for n in _DESCRIPTIONS if n in names), *(tensors if weights else ())]:
        source.download(name, scratch / name)
    return ModelFiles(path, scratch)


def _gguf(path: str, scratch: Path) -> ModelFiles:
    parent, _, name = path.rpartition("/")
    source = open_store(parent or ".")
    if not source.exists(name):
        raise _refused(path, "there is no such file")
    if source.is_local:
        return ModelFiles(path, Path(source.url), name)
    source.download(name, scratch / name)
    return ModelFiles(path, scratch, name)


def _tensor_files(source: Store, path: str, names: set[str]) -> list[str]:
    """Return the names of the safetensors files; a pickle is never read."""
    if _INDEX in names:
        files = sorted(set(json.loads(source.read(_INDEX))["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    absent = [name for name in files if name not in names]
    if absent:
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in names)
        why = "; pickled weights are not read" if pickled else ""
        raise _refused(path, f"there is no {absent[0]}{why}")
    return files


def _refused(path: str, problem: str) -> InputError:
    return InputError(
        "run file",
        "model.path",
        f"{path}: {problem}",
        "give a Hugging Face folder with config.json and safetensors, or a .gguf file",
        code="model-unusable",
    )
