"""Whether a corpus was ingested in the way that a run wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perennial.corpora.manifest import CorpusManifest, IngestSettings, manifest_key, read_manifest
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.corpora.tokenizer import RunTokenizer
    from perennial.store import Store


def check_same_settings(
    store: Store, name: str, tokenizer: RunTokenizer, settings: IngestSettings
) -> CorpusManifest:
    """The manifest of an ingested corpus; InputError when it was ingested in another way."""
    manifest = read_manifest(store, name)
    fields = [field for field in IngestSettings.model_fields if field != "piece_bytes"]
    _check_same(store, manifest, tokenizer, settings, fields)
    return manifest


def check_same_run(
    store: Store, manifest: CorpusManifest, tokenizer: RunTokenizer, settings: IngestSettings
) -> None:
    """InputError when a corpus has another tokenizer, sequence length or seed than the run."""
    _check_same(store, manifest, tokenizer, settings, ["sequence_length", "seed"])


def _check_same(
    store: Store,
    manifest: CorpusManifest,
    tokenizer: RunTokenizer,
    settings: IngestSettings,
    fields: Sequence[str],
) -> None:
    then = manifest.settings.model_dump() | {"tokenizer": manifest.tokenizer}
    now = settings.model_dump() | {"tokenizer": tokenizer.fingerprint}
    for field in (*fields, "tokenizer"):
        if then[field] != now[field]:
            raise InputError(
                f"{store.url}/{manifest_key(manifest.name)}",
                field,
                f"the corpus was ingested with {then[field]}, not {now[field]}",
                "keep the run's value, land the corpus under another name, or start another run",
                code="ingested-differently",
            )
