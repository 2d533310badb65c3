"""A model as a committed checkpoint of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perennial.store import Store
from perennial.training.checkpoint import manifest as checkpoints

KEY = "checkpoints/00-en/00000004"


def commit_model(store: Store, model: Any, folder: Path) -> str:
    """Commit a model of transformers, by way of a local folder; return the checkpoint's key."""
    model.save_pretrained(folder)
    return commit_folder(store, folder)


def commit_folder(store: Store, folder: Path) -> str:
    """Commit the files of a local folder as a checkpoint; return its key."""
    files = checkpoints.upload(store, f"{KEY}/attempt", sorted(folder.iterdir()))
    manifest = checkpoints.CheckpointManifest(
        name="00-en",
        step=4,
        phase="constant",
        eta=1e-3,
        schedule={},
        mix={},
        mix_step=4,
        tokens_seen={"en": 4},
        optimizer_steps=4,
        world_size=1,
        code_version="0",
        tracking_run="",
        attempt="attempt",
        files=files,
    )
    assert checkpoints.commit(store, KEY, manifest)
    return KEY
