"""Weights that stage 0 starts from: random, or a stored model imported into the run once.

Workers on other machines cannot read the folder that the run file names, so the driver copies the
model to `models/initial/` in the store, manifest last (invariant I6); every worker reads that.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from perennial.training.model.config import (
    check_fit,
    model_config,
    random_model,
    stored_config,
    stored_model,
)
from perennial.training.model.inherit import inherit
from perennial.training.model.stored import model_files

if TYPE_CHECKING:
    from perennial.config.training import ModelSpec
    from perennial.store import Store
    from perennial.training.job import Job

FOLDER = "models/initial"
_MANIFEST = f"{FOLDER}/manifest.json"


class InitialManifest(BaseModel):
    """Origin of the run's first weights, which exist when their manifest does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """as the run file gave it"""
    inherit_layers: int | None
    parameters: int
    files: dict[str, str]
    """sha256 by file name"""


def has_model(store: Store) -> bool:
    """Return whether the run's stored model was imported."""
    return store.exists(_MANIFEST)


def import_model(
    store: Store, spec: ModelSpec, vocabulary: int, end_of_document: int, sequence_length: int
) -> InitialManifest:
    """Copy the stored model that the run starts from into its store, once.

    Raises InputError when the model is not there or does not fit the run.
    """
    assert spec.path is not None
    if has_model(store):
        return InitialManifest.model_validate_json(store.read(_MANIFEST))
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as target:
        files = model_files(spec.path, Path(source), weights=True)
        config = stored_config(files, spec.inherit_layers)
        check_fit(config, spec.path, vocabulary, sequence_length)
        model = stored_model(files.folder, files.gguf, dtype="auto")
        if spec.inherit_layers is not None:
            model = inherit(model, spec.inherit_layers)
        model.config.eos_token_id = end_of_document
        model.generation_config.eos_token_id = end_of_document
        model.save_pretrained(target)
        written = sorted(Path(target).iterdir())
        for file in written:
            store.upload(file, f"{FOLDER}/{file.name}")
        manifest = InitialManifest(
            path=spec.path,
            inherit_layers=spec.inherit_layers,
            parameters=model.num_parameters(),
            files={file.name: _digest(file) for file in written},
        )
    store.create(_MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest


def initial_model(store: Store, job: Job) -> Any:
    """Return the model that a job without a checkpoint to start from begins with, in float32."""
    if job.model.path is None:
        config = model_config(job.model, job.vocabulary, job.end_of_document, job.sequence_length)
        return random_model(config, job.seed, job.model.init)
    manifest = InitialManifest.model_validate_json(store.read(_MANIFEST))
    with tempfile.TemporaryDirectory() as scratch:
        for name, expected in manifest.files.items():
            local = Path(scratch) / name
            store.download(f"{FOLDER}/{name}", local)
            if _digest(local) != expected:
                raise RuntimeError(f"{FOLDER}/{name} is damaged: its digest is not the manifest's")
        return stored_model(Path(scratch))


def _digest(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
