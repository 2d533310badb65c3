"""Export of a checkpoint as a Hugging Face folder; its manifest is written last."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from perennial.store import Store
from perennial.training.checkpoint import manifest as checkpoints


def export(
    store: Store,
    checkpoint: str,
    folder: str,
    tokenizer_json: str,
    end_of_document: str,
    card: str,
    begin_of_document: str | None = None,
) -> None:
    """Write a release folder from a committed checkpoint (invariant I6).

    AutoModelForCausalLM and AutoTokenizer load it with `from_pretrained`.

    Args:
        store: the run's store.
        checkpoint: key of the checkpoint.
        folder: key of the release.
        tokenizer_json: text of the tokenizer.json.
        end_of_document: the token.
        card: text of the model card.
        begin_of_document: the token; default: the end, as no training had one.
    """
    manifest = checkpoints.read_manifest(store, checkpoint)
    left_out = (checkpoints.OPTIMIZER, checkpoints.METRICS)
    kept = [name for name in manifest.files if not name.startswith(left_out)]
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch)
        checkpoints.download(store, checkpoint, manifest, kept, local)
        _write_tokenizer(local, tokenizer_json, end_of_document, begin_of_document)
        (local / "README.md").write_text(card, encoding="utf-8")
        files = checkpoints.upload(store, folder, sorted(local.iterdir()))
    manifest_data = {
        "checkpoint": checkpoint,
        "tokens_seen": manifest.tokens_seen,
        "code_version": manifest.code_version,
        "files": {name: entry.model_dump() for name, entry in files.items()},
    }
    store.create(f"{folder}/manifest.json", json.dumps(manifest_data, indent=1).encode())


def _write_tokenizer(
    folder: Path, tokenizer_json: str, end_of_document: str, begin_of_document: str | None
) -> None:
    from transformers import PreTrainedTokenizerFast

    source = folder / "tokenizer.json"
    source.write_text(tokenizer_json, encoding="utf-8")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(source),
        bos_token=begin_of_document or end_of_document,
        eos_token=end_of_document,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
