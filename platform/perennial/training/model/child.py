"""Models of fewer layers that the trials of an Inheritune search begin with (arXiv 2404.08634).

A child is written as a checkpoint of no steps, manifest last, so that a job starts from it as from
any other. It is in fp32: a rounded checkpoint has its exact weights in the optimizer's files, which
a child has none of.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.store import Store
from perennial.training.absent_modules import absent
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.checkpoint.manifest import METRICS, OPTIMIZER, CheckpointManifest
from perennial.training.cost_model import ModelSize, model_size
from perennial.training.model.config import random_model, stored_model
from perennial.training.model.inherit import extend, inherit, shortened
from perennial.version import __version__

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class ChildStart:
    """The weights that a child begins with.

    layers: its number.
    reference: key of the checkpoint whose first layers it has.
    grown_from: key of the checkpoint of a smaller child, which gives all weights but those of the
        layers behind its own; None for none.
    seed: of random weights in place of the reference's; None for none.
    init: as `model.init` of the run file, of random weights.
    """

    layers: int
    reference: str
    grown_from: str | None = None
    seed: int | None = None
    init: str = "architecture"


def read_config(store: Store, checkpoint: str) -> PretrainedConfig:
    """Return the configuration of a checkpoint's model.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        Damaged: its manifest or its configuration is not what was stored.
    """
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
        manifest = checkpoints.read_manifest(store, checkpoint)
        checkpoints.download(store, checkpoint, manifest, ["config.json"], Path(scratch))
        return AutoConfig.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)


def child_sizes(config: PretrainedConfig, layers: list[int]) -> list[ModelSize]:
    """Return the sizes of a model's children, after a check that it can be cut at each.

    Args:
        config: of the reference.
        layers: of the children.

    Raises:
        InputError: it has fewer layers, or cannot be cut.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # shapes alone
        reference = AutoModelForCausalLM.from_config(config)
        for number in layers:
            inherit(reference, number)
    return [model_size(shortened(config, number)) for number in layers]


def write_child(store: Store, key: str, start: ChildStart, name: str) -> None:
    """Store a child as the checkpoint that a job starts from, once.

    The same child has the same bytes, so that it may be written again after a kill, and by two
    processes at a time.

    Args:
        store: the run's store.
        key: of the checkpoint.
        start: what the child is made of.
        name: of the trial that starts from it.

    Raises:
        Damaged: a file of the reference, or of the smaller child, is not what was stored.
    """
    if store.exists(f"{key}/{checkpoints.MANIFEST}"):
        return
    reference = checkpoints.read_manifest(store, start.reference)
    with tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
        folder = Path(scratch)
        # Else transformers imports it here, to unwrap a model that is not wrapped.
        with absent("deepspeed"):
            _make(store, start).save_pretrained(folder)
        files = checkpoints.upload(store, key, sorted(folder.iterdir()))
    manifest = CheckpointManifest(
        name=name,
        step=0,
        phase="start",
        eta=0.0,
        schedule={},
        mix={},
        mix_step=0,
        tokens_seen={},
        optimizer_steps=0,
        tokenizer=reference.tokenizer,
        world_size=1,
        code_version=__version__,
        tracking_run="",
        files=files,
    )
    checkpoints.commit(store, key, manifest)


def _make(store: Store, start: ChildStart) -> Any:
    if start.seed is not None:
        config = shortened(read_config(store, start.reference), start.layers)
        return random_model(config, start.seed, start.init)
    reference = _load(store, start.reference)
    if start.grown_from is None:
        return inherit(reference, start.layers)
    return extend(_load(store, start.grown_from), reference, start.layers)


def _load(store: Store, checkpoint: str) -> Any:
    """Return a checkpoint's model in fp32."""
    with tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
        manifest = checkpoints.read_manifest(store, checkpoint)
        names = [n for n in manifest.files if not n.startswith(OPTIMIZER) and n != METRICS]
        checkpoints.download(store, checkpoint, manifest, names, Path(scratch))
        return stored_model(Path(scratch))
