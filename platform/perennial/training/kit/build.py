"""Building of a trunk kit's files from a checkpoint, and the seal that makes them a kit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from perennial.errors import Damaged
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.checkpoint.manifest import METRICS, OPTIMIZER, FileEntry
from perennial.training.checkpoint.tensors import weights_are_rounded
from perennial.training.kit.manifest import (
    KIT,
    MASTER,
    RUN_FILE,
    STATE_FOLDER,
    KitManifest,
    OptimizerState,
)
from perennial.training.kit.state_files import LARGEST_BYTES, WholeState
from perennial.training.model.config import stored_model
from perennial.training.model.export import describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from perennial.store import Store
    from perennial.training.checkpoint.manifest import CheckpointManifest


def build_kit(
    store: Store, checkpoint: str, tokenizer: Mapping[str, bytes], scratch: Path, folder: Path
) -> OptimizerState:
    """Write the model, the tokenizer and the optimizer's state of a checkpoint into a folder.

    Args:
        store: the run's store.
        checkpoint: key of the checkpoint.
        tokenizer: the tokenizer's files by name.
        scratch: a local folder for the checkpoint's files.
        folder: a local folder, empty and of the same disk.

    Raises:
        Damaged: a file of the checkpoint is missing or has another digest than its manifest says.
    """
    manifest = checkpoints.read_manifest(store, checkpoint)
    names = [name for name in manifest.files if name != METRICS]
    checkpoints.download(store, checkpoint, manifest, names, scratch)
    state_files = sorted(scratch.glob(f"{OPTIMIZER}*"))
    try:
        with WholeState(state_files) as state:
            kinds = state.kinds
            if weights_are_rounded(scratch):
                _write_exact_model(scratch, state, folder)
            else:
                _move_model(scratch, folder)
            (folder / STATE_FOLDER).mkdir()
            state.write(folder / STATE_FOLDER)
    except ValueError as lacking:
        raise Damaged(f"{checkpoint}/{checkpoints.MANIFEST}", str(lacking)) from None
    describe(folder, tokenizer)
    return OptimizerState(
        kind=manifest.optimizer or "adamw",
        steps=manifest.optimizer_steps,
        loss_scale=manifest.loss_scale,
        tensors=kinds,
    )


def estimate_bytes(manifest: CheckpointManifest, *, rounded: bool) -> int:
    """Return roughly the bytes of a kit's tensors.

    Args:
        manifest: of the checkpoint.
        rounded: whether its model has two bytes a weight, which become four.
    """
    state = sum(f.size_bytes for name, f in manifest.files.items() if name.startswith(OPTIMIZER))
    model = sum(f.size_bytes for name, f in manifest.files.items() if name.startswith("model"))
    return state + model * (2 if rounded else 1)


def seal_kit(folder: Path, manifest: KitManifest) -> Path:
    """Write the manifest of a kit whose other files are in a folder; it gets their digests."""
    files = {
        path.relative_to(folder).as_posix(): FileEntry(
            size_bytes=path.stat().st_size, sha256=checkpoints.digest(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (KIT, RUN_FILE)
    }
    sealed = manifest.model_copy(update={"files": files})
    (folder / KIT).write_text(sealed.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return folder / KIT


def _move_model(scratch: Path, folder: Path) -> None:
    for file in scratch.iterdir():
        if not file.name.startswith(OPTIMIZER):
            file.replace(folder / file.name)


def _write_exact_model(scratch: Path, state: WholeState, folder: Path) -> None:
    """Write the model with the fp32 weights that the optimizer steps; the stored ones are rounded.

    Raises:
        ValueError: the state lacks a parameter's.
    """
    model = stored_model(scratch)
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    absent = state.fill(MASTER, parameters)
    if absent:
        raise ValueError(f"lacks the fp32 weights of {absent[0]}")
    model.save_pretrained(folder, max_shard_size=LARGEST_BYTES)
