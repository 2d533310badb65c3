"""A model as a committed checkpoint of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perennial.store import Store
from perennial.training.checkpoint import manifest as checkpoints

KEY = checkpoints.folder_of("checkpoints/00-en", 4)


def commit_model(store: Store, model: Any, folder: Path) -> str:
    """Commit a model of transformers, by way of a local folder; return the checkpoint's key."""
    model.save_pretrained(folder)
    return commit_folder(store, folder)


def commit_folder(
    store: Store, folder: Path, step: int = 4, key: str | None = None, **fields: Any
) -> str:
    """Commit the files of a local folder as a checkpoint; return its key.

    `fields` are of its manifest, in place of what stands below.
    """
    key = key or checkpoints.folder_of("checkpoints/00-en", step)
    files = checkpoints.upload(store, f"{key}/attempt", sorted(folder.iterdir()))
    manifest = checkpoints.CheckpointManifest(
        name="00-en",
        step=step,
        phase="constant",
        eta=1e-3,
        schedule={},
        mix={},
        mix_step=step,
        tokens_seen={"en": step},
        optimizer_steps=step,
        world_size=1,
        code_version="0",
        tracking_run="",
        attempt="attempt",
        files=files,
    )
    assert checkpoints.commit(store, key, manifest.model_copy(update=fields))
    return key
