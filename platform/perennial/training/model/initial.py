"""Weights that stage 0 starts from: random, or a stored model imported into the run once.

Workers on other machines cannot read the folder that the run file names, so the driver copies the
model to `models/initial/` in the store, manifest last (invariant I6); every worker reads that. Of a
model whose first layers are inherited the whole is copied too, to `models/reference/`, where it is
only measured. A trunk kit also brings an optimizer's state, which is copied to `models/optimizer/`
for a first stage that keeps it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from perennial.errors import Altered, Damaged
from perennial.store import check_object, copy_checked, download_checked, open_store
from perennial.store.stored_json import parse_json
from perennial.training.absent_modules import absent
from perennial.training.kit.manifest import (
    MASTER,
    KitOrigin,
    OptimizerState,
    altered_kit,
    read_kit,
)
from perennial.training.model.base_card import BaseCard, read_base_card
from perennial.training.model.config import (
    check_fit,
    count_parameters,
    model_config,
    random_model,
    stored_config,
    stored_model,
    weightless_model,
)
from perennial.training.model.inherit import cut_tensors, inherit
from perennial.training.model.shards import INDEX
from perennial.training.model.stored import ModelFiles, model_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from perennial.config.run import OptimizerAtJoin
    from perennial.config.training import ModelSpec
    from perennial.store import Store
    from perennial.training.job import Job

FOLDER = "models/initial"
REFERENCE_FOLDER = "models/reference"
STATE_FOLDER = "models/optimizer"
_MANIFEST = "manifest.json"
MODEL_KEY = f"{FOLDER}/{_MANIFEST}"
"""of the run's stored model, written when it was imported whole"""
_CHUNK_BYTES = 8 << 20


class InitialManifest(BaseModel):
    """Origin of the run's first weights, which exist when their manifest does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """as the run file gave it"""
    inherit_layers: int | None
    parameters: int
    files: dict[str, str]
    """sha256 by file name"""
    kit: KitOrigin | None = Field(default=None, exclude_if=lambda kit: kit is None)
    """the trunk kit that it is; None for any other stored model"""
    optimizer: OptimizerState | None = Field(default=None, exclude_if=lambda its: its is None)
    """what that kit has of the optimizer; None without a kit"""
    card: BaseCard | None = Field(default=None, exclude_if=lambda card: card is None)
    """what its card says; None where it says nothing that is kept"""


def has_model(store: Store) -> bool:
    """Return whether the run's stored model was imported."""
    return store.exists(MODEL_KEY)


def has_reference(store: Store) -> bool:
    """Return whether the whole model whose first layers the run inherits was imported."""
    return store.exists(f"{REFERENCE_FOLDER}/{_MANIFEST}")


def import_model(
    store: Store, spec: ModelSpec, vocabulary: int, end_of_document: int, sequence_length: int
) -> InitialManifest:
    """Copy the stored model that the run starts from into its store, once.

    Raises InputError when the model is not there or does not fit the run.
    """
    assert spec.path is not None
    if has_model(store):
        return read_initial(store)[0]
    if spec.inherit_layers is not None and not has_reference(store):
        whole = spec.model_copy(update={"inherit_layers": None})
        _import(store, REFERENCE_FOLDER, whole, vocabulary, end_of_document, sequence_length)
    return _import(store, FOLDER, spec, vocabulary, end_of_document, sequence_length)


def _import(
    store: Store,
    folder: str,
    spec: ModelSpec,
    vocabulary: int,
    end_of_document: int,
    sequence_length: int,
) -> InitialManifest:
    """Copy a stored model, or its first layers, to a folder of the store, the manifest last."""
    assert spec.path is not None
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as scratch:
        converted = spec.path.endswith(".gguf") or spec.inherit_layers is not None
        files = model_files(spec.path, Path(source), weights=converted)
        if converted:
            _check_tensors(files)
        config = stored_config(files, spec.inherit_layers)
        check_fit(config, spec.path, vocabulary, sequence_length)
        if spec.inherit_layers is not None and _cut(files, config, end_of_document, Path(scratch)):
            parameters, digests = _count(config), _upload(store, folder, Path(scratch))
        elif converted:
            model = _convert(files, spec.inherit_layers, end_of_document)
            # Else transformers imports it on the driver, to unwrap a model that is not wrapped.
            with absent("deepspeed"):
                model.save_pretrained(scratch)
            parameters = model.num_parameters()
            digests = _upload(store, folder, Path(scratch))
        else:
            parameters = count_parameters(files)
            _describe(files, config, end_of_document, Path(scratch))
            digests = _upload(store, folder, Path(scratch))
            digests |= _copy_tensors(store, folder, files)
    kit, origin = files.kit or (None, None)
    manifest = InitialManifest(
        path=spec.path,
        inherit_layers=spec.inherit_layers,
        parameters=parameters,
        files=digests,
        kit=origin,
        optimizer=kit.optimizer if kit else None,
        card=read_base_card(spec.path),
    )
    store.create(f"{folder}/{_MANIFEST}", manifest.model_dump_json(indent=1).encode())
    return manifest


def _cut(files: ModelFiles, config: PretrainedConfig, end_of_document: int, folder: Path) -> bool:
    """Write the first layers of a stored model into a folder; False where it must be loaded."""
    if files.gguf is None and cut_tensors(files, config, folder):
        _describe(files, config, end_of_document, folder)
        return True
    for file in folder.iterdir():
        file.unlink()
    return False


def _count(config: PretrainedConfig) -> int:
    return int(weightless_model(config).num_parameters())


def _convert(files: ModelFiles, inherit_layers: int | None, end_of_document: int) -> Any:
    """Return the model of a GGUF file, or cut to its first layers: both have to be loaded."""
    model = stored_model(files.folder, files.gguf, dtype="auto")
    if inherit_layers is not None:
        model = inherit(model, inherit_layers)
    for its in (model.config, model.generation_config):
        its.eos_token_id = ends_with(its.eos_token_id, end_of_document)
    return model


def _describe(
    files: ModelFiles, config: PretrainedConfig, end_of_document: int, folder: Path
) -> None:
    """Write the model's configurations, with the run's end-of-document id, into a folder."""
    generation = files.folder / "generation_config.json"
    if generation.exists():
        described = parse_json(generation.read_text())
        ends = ends_with(described.get("eos_token_id"), end_of_document)
        if described.get("eos_token_id") == ends:
            shutil.copy(generation, folder)
        else:
            text = json.dumps(described | {"eos_token_id": ends}, indent=2)
            (folder / generation.name).write_text(text)
    config.eos_token_id = ends_with(config.eos_token_id, end_of_document)
    config.save_pretrained(folder)


def ends_with(ends: int | list[int] | None, end_of_document: int) -> int | list[int]:
    """Return a model's end tokens with the run's, which goes first where it is not among them."""
    if ends is None or ends == end_of_document:
        return end_of_document
    own = ends if isinstance(ends, list) else [ends]
    return ends if end_of_document in own else [end_of_document, *own]


def _copy_tensors(store: Store, folder: str, files: ModelFiles) -> dict[str, str]:
    """Copy the tensors' files as they are, in constant memory; return their digests by name."""
    source = open_store(files.where)
    names = [name for name in (*files.tensors, INDEX) if source.exists(name)]
    return {name: _copy(files, source, name, store, f"{folder}/{name}") for name in names}


def _copy(files: ModelFiles, source: Store, name: str, target: Store, key: str) -> str:
    """Copy a file of a model; of a trunk kit nothing but what its manifest promises."""
    promised = files.promised(name)
    if promised is None:
        return _copy_object(source, name, target, key)
    try:
        copy_checked(source, name, target, key, promised)
    except Altered as altered:
        raise altered_kit(files.where, name, altered.problem) from None
    return promised


def _check_tensors(files: ModelFiles) -> None:
    """Compare the tensors of a trunk kit with its manifest, where they are not copied as they are.

    Raises:
        InputError: one is another.
    """
    for name in files.tensors if files.kit else ():
        try:
            check_object(open_store(files.where), name, files.promised(name) or "")
        except Altered as altered:
            raise altered_kit(files.where, name, altered.problem) from None


def import_state(store: Store, path: str) -> None:
    """Copy the optimizer's state of the trunk kit that the run starts from into its store, once.

    Args:
        store: the run's store, which has the kit's model.
        path: of the kit, as the run file gives it.

    Raises:
        InputError: the kit is gone, or is not the one that the model was taken from.
    """
    base, _ = read_initial(store)
    assert base.kit is not None and base.optimizer is not None
    if store.exists(f"{STATE_FOLDER}/{_MANIFEST}"):
        return
    source = open_store(path)
    kit = read_kit(source, path)
    if kit is None or kit[1] != base.kit:
        raise altered_kit(
            path,
            "kit.json",
            f"is not the one of digest {base.kit.digest}, whose model the run starts from",
        )
    files = {}
    for name, file in kit[0].state_files.items():
        try:
            key = f"{STATE_FOLDER}/{name}"
            copy_checked(source, f"optimizer/{name}", store, key, file.sha256)
        except Altered as altered:
            raise altered_kit(path, f"optimizer/{name}", altered.problem) from None
        files[name] = file.sha256
    manifest = base.model_copy(update={"files": files})
    store.create(f"{STATE_FOLDER}/{_MANIFEST}", manifest.model_dump_json(indent=1).encode())


def _upload(store: Store, folder: str, local: Path) -> dict[str, str]:
    """Store a local folder's files in a folder of the store; return their digests by name."""
    digests = {}
    for file in sorted(local.iterdir()):
        store.upload(file, f"{folder}/{file.name}")
        digests[file.name] = _digest(file)
    return digests


def _copy_object(source: Store, name: str, target: Store, key: str) -> str:
    """Copy an object from one store to another in constant memory; return its SHA-256."""
    sha256 = hashlib.sha256()
    with source.open(name) as data, target.open(key, "wb") as sink:
        while chunk := data.read(_CHUNK_BYTES):
            sha256.update(chunk)
            sink.write(chunk)
    return sha256.hexdigest()


def read_initial(store: Store, folder: str = FOLDER) -> tuple[InitialManifest, str]:
    """Return the manifest of an imported model, and its SHA-256.

    Raises:
        Damaged: it cannot be read.
        FileNotFoundError: there is none.
    """
    key = f"{folder}/{_MANIFEST}"
    data = store.read(key)
    try:
        return InitialManifest.model_validate_json(data), hashlib.sha256(data).hexdigest()
    except ValueError as broken:
        raise Damaged(key, "cannot be read") from broken


def fetch_initial(store: Store, folder: Path) -> None:
    """Copy the imported model to a local folder.

    Raises:
        Damaged: a file is missing or has another digest than its manifest says.
    """
    manifest, _ = read_initial(store)
    for name, expected in manifest.files.items():
        key = f"{FOLDER}/{name}"
        try:
            download_checked(store, key, folder / name, expected)
        except Altered as altered:
            raise Damaged(key, altered.problem) from None


def initial_state(job: Job, store: Store) -> InitialManifest | None:
    """Return the manifest of the optimizer's state that a job begins with; None for none.

    A first stage that resets the moments still needs the fp32 weights, where it computes in fewer
    bits: they are the trunk itself.

    Raises:
        Damaged: it cannot be read, or is not there.
    """
    if job.model.path is None:
        return None
    base, _ = read_initial(store)
    if base.optimizer is None or not needs_state(
        base.optimizer, job.optimizer, job.training.precision
    ):
        return None
    try:
        return read_initial(store, STATE_FOLDER)[0]
    except FileNotFoundError:
        raise Damaged(f"{STATE_FOLDER}/{_MANIFEST}", "is missing") from None


def needs_state(state: OptimizerState, join: OptimizerAtJoin, precision: str) -> bool:
    """Return whether a first stage needs the optimizer's state of the kit that it starts from.

    Args:
        state: the kit's.
        join: what the stage keeps of it.
        precision: in which the stage computes.
    """
    return join != "reset" or (precision != "fp32" and MASTER in state.tensors)


def fetch_state(store: Store, state: InitialManifest, name: str, folder: Path) -> None:
    """Copy a file of the optimizer's state to a local folder.

    Raises:
        Damaged: it is missing or has another digest than the manifest says.
    """
    key = f"{STATE_FOLDER}/{name}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        download_checked(store, key, folder / name, state.files[name])
    except Altered as altered:
        raise Damaged(key, altered.problem) from None


def new_model(job: Job) -> Any:
    """Return the random model that a job without a stored one begins with, in float32."""
    return random_model(_config_of(job), job.seed, job.model.init)


def draw_initial(job: Job, folder: Path) -> None:
    """Write the files of the model that `new_model` returns, without holding it."""
    from perennial.training.model.drawing import draw_model

    draw_model(_config_of(job), job.seed, job.model.init, folder)


def _config_of(job: Job) -> PretrainedConfig:
    config = model_config(job.model, job.vocabulary, job.end_of_document, job.sequence_length)
    if job.begin_of_document is not None and "bos_token_id" not in job.model.config:
        config.bos_token_id = job.begin_of_document
    return config


def _digest(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
