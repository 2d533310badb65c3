"""Manifest of a trunk kit: a folder from which another run continues a trunk.

A kit is a Hugging Face folder with the fp32 weights of a checkpoint of the trunk before any anneal,
its tokenizer, the optimizer's state below `optimizer/`, a run file to edit, and `kit.json`, which
is this manifest. It has the digest of every file but the run file's, and readers compare them.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from perennial.errors import Altered, InputError
from perennial.store import Store, read_checked
from perennial.training.checkpoint.manifest import FileEntry

KIT: Final = "kit.json"
RUN_FILE: Final = "run.yaml"
STATE_FOLDER: Final = "optimizer"
MASTER: Final = "master"
"""Kind of the fp32 weights among the optimizer's tensors, of a run that computes in fewer bits."""
_TENSORS = ".safetensors"


class _KitRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class OptimizerState(_KitRecord):
    """The state of an optimizer: its tensors lie in files beside this."""

    kind: str
    """of the optimizer, as `training.optimizer.kind`"""
    steps: int
    """optimizer steps that it has seen"""
    loss_scale: float | None
    """fp16's factor of the loss; null in other formats"""
    tensors: tuple[str, ...]
    """kinds of its tensors, such as exp_avg"""


class KitStage(_KitRecord):
    """A stage of the trunk, up to the kit's step."""

    name: str
    first_step: int
    steps: int
    tokens: dict[str, int]
    """trained in it, by corpus; those of its new corpora come first"""


class KitCorpus(_KitRecord):
    """A corpus that the trunk was trained on."""

    tokens_seen: int
    """with replay"""
    digest: str
    """of its manifest"""


class KitManifest(_KitRecord):
    """A trunk kit, which exists when its manifest does."""

    format: Literal[1] = 1
    run: str
    """name of the lineage"""
    source: str
    """STAGE@STEP of the checkpoint"""
    checkpoint: str
    """SHA-256 of the checkpoint's manifest"""
    step: int
    """trunk steps that were taken"""
    phase: str
    """of the last of these"""
    eta: float
    """rate of the last of these"""
    schedule: dict[str, Any]
    """the trunk's"""
    sequence_length: int
    global_batch: int
    """sequences in a step"""
    optimizer: OptimizerState
    tokenizer: str
    """the tokenizer's fingerprint"""
    corpora: dict[str, KitCorpus]
    stages: tuple[KitStage, ...]
    code_version: str
    files: dict[str, FileEntry]
    """of the kit, by name"""

    @property
    def state_files(self) -> dict[str, FileEntry]:
        """Return the files of the optimizer's state by their names in its folder."""
        inside = f"{STATE_FOLDER}/"
        return {n.removeprefix(inside): f for n, f in self.files.items() if n.startswith(inside)}


class KitOrigin(_KitRecord):
    """The kit that a run starts from: which it is, and where it came from."""

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of its manifest"""
    run: str
    """the lineage that it was taken from"""
    source: str
    """STAGE@STEP there"""
    checkpoint: str
    """SHA-256 of that checkpoint's manifest"""
    step: int
    """steps of that trunk"""
    optimizer_steps: int
    """steps that its optimizer has seen"""
    phase: str
    eta: float


def read_kit(source: Store, path: str) -> tuple[KitManifest, KitOrigin] | None:
    """Return the manifest of a kit and where it came from; None for a folder that is no kit.

    The files that are no tensors are compared with their digests, and all with their sizes; who
    copies tensors compares theirs.

    Args:
        source: the folder.
        path: as the run file has it, for messages.

    Raises:
        InputError: `kit-altered`, when a file is missing or is another one.
    """
    try:
        data = source.read(KIT)
    except FileNotFoundError:
        return None
    try:
        kit = KitManifest.model_validate_json(data)
    except ValueError:
        raise altered_kit(path, KIT, "cannot be read") from None
    sizes = {entry.key: entry.size_bytes for entry in source.list()}
    for name, file in kit.files.items():
        if name not in sizes:
            raise altered_kit(path, name, "is missing")
        if sizes[name] != file.size_bytes:
            problem = f"has {sizes[name]:,} bytes, and {KIT} says {file.size_bytes:,}"
            raise altered_kit(path, name, problem)
        if not name.endswith(_TENSORS):
            try:
                read_checked(source, name, file.sha256)
            except Altered as altered:
                raise altered_kit(path, name, altered.problem) from None
    known = kit.model_dump(include={"run", "source", "checkpoint", "step", "phase", "eta"})
    known["optimizer_steps"] = kit.optimizer.steps
    return kit, KitOrigin(digest=hashlib.sha256(data).hexdigest(), **known)


def altered_kit(path: str, name: str, problem: str) -> InputError:
    """Return the error of a kit's file that is not the one that its manifest names."""
    return InputError(
        "run file",
        "model.path",
        f"{path}: {name} {problem}",
        "copy the whole trunk kit again",
        code="kit-altered",
    )
