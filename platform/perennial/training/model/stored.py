"""Files of a stored model: a Hugging Face folder or a GGUF file, local or in a bucket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perennial.errors import InputError
from perennial.store import Store, open_store
from perennial.training.kit.manifest import KitManifest, KitOrigin, read_kit
from perennial.training.model.shards import INDEX, WHOLE, indexed_files

_DESCRIPTIONS = ("config.json", "generation_config.json", INDEX)
_HEADER_SIZE_BYTES = 8


@dataclass(frozen=True)
class ModelFiles:
    """A local folder that transformers can load a model from; `gguf` is the file's name in it.

    where: the path as the run file gives it.
    tensors: names of its safetensors files; () for a GGUF file.
    kit: manifest and origin of the trunk kit that the folder is; None for any other.
    """

    where: str
    folder: Path
    gguf: str | None = None
    tensors: tuple[str, ...] = ()
    kit: tuple[KitManifest, KitOrigin] | None = None

    def promised(self, name: str) -> str | None:
        """Return the digest that a trunk kit promises of a file; None where there is no promise."""
        return self.kit[0].files[name].sha256 if self.kit else None


def model_files(path: str, scratch: Path, *, weights: bool) -> ModelFiles:
    """Return the model's files on this machine: where they lie, or copied to `scratch`.

    weights: whether the tensors are wanted too; a GGUF file is always copied whole.
    Raises InputError when the path holds no model, or only pickled weights, and for a trunk kit of
    which a file is not the one that its manifest names; of the tensors the digests are the
    reader's to compare.
    """
    if path.endswith(".gguf"):
        return _gguf(path, scratch)
    source = open_store(path)
    names = {entry.key for entry in source.list() if "/" not in entry.key}
    if "config.json" not in names:
        raise _refused(path, "there is no config.json")
    tensors = _tensor_files(source, path, names)
    kit = read_kit(source, path)
    if source.is_local:
        return ModelFiles(path, Path(source.url), tensors=tensors, kit=kit)
    for name in [*(n for n in _DESCRIPTIONS if n in names), *(tensors if weights else ())]:
        source.download(name, scratch / name)
    return ModelFiles(path, scratch, tensors=tensors, kit=kit)


def write_hollow_tensors(files: ModelFiles, folder: Path) -> None:
    """Write the safetensors files of a model with their names and shapes, and holes for numbers.

    They take no room, and transformers compares them with a configuration as it does real ones.
    """
    source = open_store(files.where)
    for name in (*files.tensors, INDEX):
        if not source.exists(name):
            continue
        with source.open(name) as data, (folder / name).open("wb") as target:
            if name == INDEX:
                target.write(data.read())
                continue
            size = data.read(_HEADER_SIZE_BYTES)
            target.write(size + data.read(int.from_bytes(size, "little")))
            target.truncate(source.info(name).size_bytes)


def _gguf(path: str, scratch: Path) -> ModelFiles:
    parent, _, name = path.rpartition("/")
    source = open_store(parent or ".")
    if not source.exists(name):
        raise _refused(path, "there is no such file")
    if source.is_local:
        return ModelFiles(path, Path(source.url), name)
    source.download(name, scratch / name)
    return ModelFiles(path, scratch, name)


def _tensor_files(source: Store, path: str, names: set[str]) -> tuple[str, ...]:
    """Return the names of the safetensors files; a pickle is never read."""
    files = indexed_files(source.read(INDEX)) if INDEX in names else [WHOLE]
    absent = [name for name in files if name not in names]
    if absent:
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in names)
        why = "; pickled weights are not read" if pickled else ""
        raise _refused(path, f"there is no {absent[0]}{why}")
    return tuple(files)


def _refused(path: str, problem: str) -> InputError:
    return InputError(
        "run file",
        "model.path",
        f"{path}: {problem}",
        "give a Hugging Face folder with config.json and safetensors, or a .gguf file",
        code="model-unusable",
    )
