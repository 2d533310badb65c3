"""Checkpoints in the store: folders that transformers can load, committed by their manifest.

A checkpoint is `config.json`, `model.safetensors`, one `optimizer-RR-of-WW.safetensors` a worker,
`metrics.jsonl` (the steps since the checkpoint before) and, last, `manifest.json` (invariant I6).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from perennial.store import Store

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"


class FileEntry(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True)

    size_bytes: int
    sha256: str


class CheckpointManifest(BaseModel):
    """What a checkpoint says of itself; it exists when this does."""

    model_config = ConfigDict(frozen=True)

    name: str
    step: int
    phase: str
    eta: float
    schedule: dict[str, Any]
    mix: dict[str, Any]
    mix_step: int
    tokens_seen: dict[str, int]
    skipped: tuple[int, ...] = ()
    optimizer_steps: int
    world_size: int
    code_version: str
    tracking_run: str
    files: dict[str, FileEntry]


def folder_of(folder: str, step: int) -> str:
    """Key of the checkpoint of `step` in a stage's or branch's folder."""
    return f"{folder}/{step:08d}"


def latest_step(store: Store, folder: str) -> int | None:
    """Highest committed step below `folder`, or None."""
    return max(committed_steps(store, folder), default=None)


def committed_steps(store: Store, folder: str) -> list[int]:
    """Committed steps below `folder`, in order."""
    suffix = f"/{MANIFEST}"
    return sorted(
        int(entry.key.removesuffix(suffix).rsplit("/", 1)[-1])
        for entry in store.list(folder)
        if entry.key.endswith(suffix)
    )


def read_manifest(store: Store, checkpoint: str) -> CheckpointManifest:
    """The manifest of a committed checkpoint; FileNotFoundError when there is none."""
    return CheckpointManifest.model_validate_json(store.read(f"{checkpoint}/{MANIFEST}"))


def upload(store: Store, checkpoint: str, files: Iterable[Path]) -> dict[str, FileEntry]:
    """Copy files into the checkpoint's folder; their sizes and digests."""
    entries = {}
    for path in files:
        store.upload(path, f"{checkpoint}/{path.name}")
        data = path.read_bytes()
        entries[path.name] = FileEntry(
            size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )
    return entries


def commit(store: Store, checkpoint: str, manifest: CheckpointManifest) -> None:
    """Make the checkpoint exist; the first commit of a step stands."""
    store.create(f"{checkpoint}/{MANIFEST}", manifest.model_dump_json(indent=1).encode())


def download(store: Store, checkpoint: str, names: Iterable[str], target: Path) -> None:
    """Copy some of a committed checkpoint's files to a local folder, checking their digests."""
    entries = read_manifest(store, checkpoint).files
    for name in names:
        store.download(f"{checkpoint}/{name}", target / name)
        found = hashlib.sha256((target / name).read_bytes()).hexdigest()
        if found != entries[name].sha256:
            raise RuntimeError(f"{checkpoint}/{name} is damaged: its digest is not the manifest's")
