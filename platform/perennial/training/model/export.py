"""Export of a checkpoint as a Hugging Face folder; its manifest is written last."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from perennial.corpora.release_tokenizer import settle_class
from perennial.corpora.tokenizer import FIRST_TOKENIZER
from perennial.store import Store
from perennial.store.stored_json import parse_json
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.model.average import write_average
from perennial.training.model.spellings import spell_for_all
from perennial.training.model.tensor_chunks import is_weights


def export(
    store: Store,
    checkpoint: str,
    folder: str,
    tokenizer: dict[str, bytes],
    card: str,
    average: Mapping[str, float] | None = None,
) -> None:
    """Write a release folder from a committed checkpoint (invariant I6).

    AutoModelForCausalLM and AutoTokenizer load it with `from_pretrained`.

    Args:
        store: the run's store.
        checkpoint: key of the checkpoint.
        folder: key of the release.
        tokenizer: the tokenizer's files by name.
        card: text of the model card.
        average: weights by key of the checkpoints that the released weights are the average of, the
            last of them `checkpoint`; None for those of `checkpoint` alone.
    """
    manifest = checkpoints.read_manifest(store, checkpoint)
    left_out = (checkpoints.OPTIMIZER, checkpoints.METRICS)
    kept = [name for name in manifest.files if not name.startswith(left_out)]
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch)
        if average is not None:
            kept = [name for name in kept if not is_weights(name)]
            write_average(store, average, local)
        checkpoints.download(store, checkpoint, manifest, kept, local)
        describe(local, tokenizer | {"README.md": card.encode()})
        files = _upload(store, folder, local)
    averaged = {} if average is None else {"average": dict(average)}
    manifest_data = averaged | {
        "checkpoint": checkpoint,
        "tokens_seen": manifest.tokens_seen,
        **({"tokens_elsewhere": manifest.tokens_elsewhere} if manifest.tokens_elsewhere else {}),
        "code_version": manifest.code_version,
        **({"tokenizer": manifest.tokenizer} if manifest.tokenizer != FIRST_TOKENIZER else {}),
        "files": {name: entry.model_dump() for name, entry in files.items()},
    }
    store.create(f"{folder}/manifest.json", json.dumps(manifest_data, indent=1).encode())


def describe(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a tokenizer's files beside a model's, and configurations that every consumer reads.

    Args:
        folder: local, with the model.
        files: to write, by name; those of the tokenizer among them.
    """
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    for name in ("config.json", "generation_config.json"):
        _spell(folder / name)
    settle_class(folder)


def _spell(file: Path) -> None:
    if file.exists():
        file.write_text(json.dumps(spell_for_all(parse_json(file.read_bytes())), indent=2))


def _upload(store: Store, folder: str, local: Path) -> dict[str, checkpoints.FileEntry]:
    """Copy a folder's files, and those of its folders; return sizes and digests by name."""
    places = sorted({file.parent for file in local.rglob("*") if file.is_file()})
    files: dict[str, checkpoints.FileEntry] = {}
    for place in places:
        below = place.relative_to(local).as_posix().removeprefix(".")
        key = f"{folder}/{below}".removesuffix("/")
        own = sorted(file for file in place.iterdir() if file.is_file())
        entries = checkpoints.upload(store, key, own)
        files |= {f"{below}/{name}".removeprefix("/"): entry for name, entry in entries.items()}
    return files
