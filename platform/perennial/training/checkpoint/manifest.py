"""Checkpoints in the store: files of one attempt, committed by their manifest.

A checkpoint is `<step>/manifest.json`, written last (invariant I6), and the files that it names in
`<step>/<attempt>/`: `config.json` and the model's safetensors, which transformers loads from there
(`model.safetensors`, or several files and their index), one `optimizer-RR-of-WW.safetensors` a
worker, and `metrics.jsonl` (every step of the stage so far). Every worker writes files of its own.
Each worker group writes under an attempt of its own and a manifest is only ever created, so nothing
can change a committed checkpoint, not even a group that is thought dead and still uploads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from perennial.corpora.tokenizer import FIRST_TOKENIZER
from perennial.errors import Altered, Damaged
from perennial.store import Store, copy_checked, download_checked, read_checked
from perennial.store.stored_json import parse_json

MANIFEST = "manifest.json"
QUARANTINED = "manifest.damaged.json"
METRICS = "metrics.jsonl"
OPTIMIZER = "optimizer-"
"""Beginning of the names of the workers' files."""
_CHUNK_BYTES = 1 << 20


class FileEntry(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True)

    size_bytes: int
    sha256: str


class CheckpointManifest(BaseModel):
    """Description of a checkpoint, which exists when its manifest does."""

    model_config = ConfigDict(frozen=True)

    name: str
    step: int
    phase: str
    eta: float
    schedule: dict[str, Any]
    mix: dict[str, Any]
    mix_step: int
    tokens_seen: dict[str, int]
    """by corpus of the mix; versions before 0.2 named every corpus that the trunk had seen"""
    tokens_elsewhere: int = Field(default=0, exclude_if=lambda its: not its)
    """those of all corpora that have no share in the mix"""
    skipped: tuple[int, ...] = ()
    optimizer: str | None = None
    """kind of the optimizer; None in checkpoints of versions before 0.2, which had AdamW alone"""
    optimizer_steps: int
    tokenizer: str = Field(default=FIRST_TOKENIZER, exclude_if=lambda its: its == FIRST_TOKENIZER)
    """key of the folder of the model's tokenizer"""
    loss_scale: float | None = None
    """fp16's factor of the loss; None in other formats, and where an older version wrote it"""
    world_size: int
    code_version: str
    stack: dict[str, str] = Field(default_factory=dict, exclude_if=lambda its: not its)
    """versions of libraries and the kind of processor that it was trained with, see `stack`; none
    where an older version wrote it"""
    tracking_run: str
    attempt: str = ""
    ledger_events: int | None = None
    ledger_sha256: str = ""
    """number of the ledger's entries when the job began, and digest of the last of them, so that a
    lost end of the ledger is seen; None where an older version wrote it"""
    files: dict[str, FileEntry]

    def key_of(self, checkpoint: str, name: str) -> str:
        """Return the key of file `name` of this manifest, which lies in `checkpoint`."""
        return f"{place_of(checkpoint, self.attempt)}/{name}"


def folder_of(folder: str, step: int) -> str:
    """Return the key of the checkpoint of `step` in a stage's or branch's folder."""
    return f"{folder}/{step:08d}"


def place_of(checkpoint: str, attempt: str) -> str:
    """Return the key of the folder of an attempt's files, which transformers can load."""
    return f"{checkpoint}/{attempt}" if attempt else checkpoint


def committed_steps(store: Store, folder: str) -> list[int]:
    """Return the steps with a committed checkpoint below `folder`, ascending."""
    suffix = f"/{MANIFEST}"
    keys = [entry.key for entry in store.list(folder) if entry.key.endswith(suffix)]
    return sorted(int(key.removesuffix(suffix).rsplit("/", 1)[-1]) for key in keys)


def latest_step(store: Store, folder: str) -> int | None:
    """Return the highest committed step below `folder`, or None."""
    return max(committed_steps(store, folder), default=None)


def read_manifest(store: Store, checkpoint: str) -> CheckpointManifest:
    """Return the manifest of a committed checkpoint.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        Damaged: the manifest cannot be parsed.
    """
    try:
        return CheckpointManifest.model_validate_json(store.read(f"{checkpoint}/{MANIFEST}"))
    except ValueError:
        pass  # once more, since a torn read spoils one transfer of a sound object
    try:
        return CheckpointManifest.model_validate_json(store.read(f"{checkpoint}/{MANIFEST}"))
    except ValueError as broken:
        raise Damaged(f"{checkpoint}/{MANIFEST}", "cannot be read") from broken


def upload(store: Store, folder: str, files: Iterable[Path]) -> dict[str, FileEntry]:
    """Copy files below the key `folder`. Returns their sizes and digests by name."""
    entries = {}
    for path in files:
        entries[path.name] = FileEntry(size_bytes=path.stat().st_size, sha256=digest(path))
        store.upload(path, f"{folder}/{path.name}")
    return entries


def digest(path: Path) -> str:
    """Return the SHA-256 of a local file, read in constant memory."""
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as source:
        while chunk := source.read(_CHUNK_BYTES):
            sha256.update(chunk)
    return sha256.hexdigest()


def commit(store: Store, checkpoint: str, manifest: CheckpointManifest) -> bool:
    """Commit a checkpoint. Returns False when another attempt has committed the step.

    Args:
        store: the run's store.
        checkpoint: key of the checkpoint.
        manifest: names the files, which are in the store already.

    Raises:
        FileNotFoundError: a file that the manifest names is missing, or is not whole.
    """
    place = place_of(checkpoint, manifest.attempt)
    sizes = {entry.key: entry.size_bytes for entry in store.list(place)}
    for name, file in manifest.files.items():
        if sizes.get(f"{place}/{name}") != file.size_bytes:
            raise FileNotFoundError(f"{place}/{name} is not whole in the store")
    data = manifest.model_dump_json(indent=1).encode()
    return store.create(f"{checkpoint}/{MANIFEST}", data)


def copy_checkpoint(
    store: Store,
    source: str,
    manifest: CheckpointManifest,
    folder: str,
    owner: Mapping[str, str],
) -> None:
    """Copy the files of a committed checkpoint to another folder, then commit it there (I6).

    Args:
        store: the run's store.
        source: key of the checkpoint.
        manifest: its manifest.
        folder: key of the other stage's or branch's folder.
        owner: fields of the manifest that are the other one's.

    Raises:
        Altered: a file has another digest than the manifest.
    """
    target = folder_of(folder, manifest.step)
    for name, file in manifest.files.items():
        key = f"{place_of(target, manifest.attempt)}/{name}"
        copy_checked(store, manifest.key_of(source, name), store, key, file.sha256)
    commit(store, target, manifest.model_copy(update=dict(owner)))


def quarantine(store: Store, checkpoint: str) -> None:
    """Rename a damaged checkpoint's manifest, so that its step can be committed again."""
    key = f"{checkpoint}/{MANIFEST}"
    store.write(f"{checkpoint}/{QUARANTINED}", store.read(key))
    store.remove(key)


def download(
    store: Store,
    checkpoint: str,
    manifest: CheckpointManifest,
    names: Iterable[str],
    target: Path,
) -> None:
    """Copy some of a committed checkpoint's files to a local folder.

    Args:
        store: the run's store.
        checkpoint: key of the checkpoint.
        manifest: its manifest.
        names: the files to copy.
        target: local folder; must exist.

    Raises:
        Damaged: a file is missing or has another digest than its manifest says.
    """
    for name in names:
        key = manifest.key_of(checkpoint, name)
        try:
            download_checked(store, key, target / name, manifest.files[name].sha256)
        except Altered as altered:
            raise Damaged(key, altered.problem) from None


def kept_rows(store: Store, folder: str) -> tuple[str | None, list[dict[str, Any]]]:
    """Return key and rows of the trained steps of the last committed checkpoint below `folder`.

    The key is None, and there are no rows, where nothing is committed yet.
    """
    step = latest_step(store, folder)
    if step is None:
        return None, []
    checkpoint = folder_of(folder, step)
    manifest = read_manifest(store, checkpoint)
    rows = read_rows(store, checkpoint, manifest)
    # A batch that was left out has no loss.
    return manifest.key_of(checkpoint, METRICS), [row for row in rows if "loss" in row]


def read_rows(store: Store, checkpoint: str, manifest: CheckpointManifest) -> list[dict[str, Any]]:
    """Return the rows of all steps of a checkpoint's metrics.

    Args:
        store: the run's store.
        checkpoint: key of the checkpoint.
        manifest: its manifest.

    Raises:
        Damaged: the file is missing or has another digest than its manifest says.
    """
    if METRICS not in manifest.files:
        raise Damaged(f"{checkpoint}/{MANIFEST}", f"names no {METRICS}")
    key = manifest.key_of(checkpoint, METRICS)
    try:
        data = read_checked(store, key, manifest.files[METRICS].sha256)
    except Altered as altered:
        raise Damaged(key, altered.problem) from None
    return [parse_json(line) for line in data.splitlines()]
