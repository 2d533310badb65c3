"""Checks that a corpus was ingested with the settings of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from perennial.corpora.growth.stored import find_tokenizer
from perennial.corpora.manifest import CorpusManifest, IngestSettings, manifest_key, read_manifest
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.corpora.tokenizer import RunTokenizer
    from perennial.store import Store


def check_same_settings(
    store: Store, name: str, tokenizer: RunTokenizer, settings: IngestSettings
) -> CorpusManifest:
    """Return the manifest of an ingested corpus if all its settings are the given ones.

    Args:
        store: the store that holds the corpus.
        name: the corpus's name.
        tokenizer: the tokenizer that it must have been ingested with.
        settings: the settings that it must have been ingested with.

    Raises:
        InputError: when it is not ingested, or differs in a setting.
    """
    manifest = read_manifest(store, name)
    # The piece size divides the work and has no influence on the result.
    fields = [field for field in IngestSettings.model_fields if field != "piece_bytes"]
    _check_same(store, manifest, tokenizer, settings, fields, tokenizer.is_named)
    return manifest


def check_same_run(
    store: Store, manifest: CorpusManifest, tokenizer: RunTokenizer, settings: IngestSettings
) -> None:
    """Raise InputError if a corpus and a run differ in tokenizer, sequence length or seed.

    Other settings may differ between the corpora of a run. Of a run whose tokenizer grew, every
    corpus is valid that has the ids of any of its tokenizers.

    Args:
        store: the store that holds the corpus, for the message.
        manifest: the corpus's manifest.
        tokenizer: the run's tokenizer.
        settings: the run's settings.
    """

    def is_the_runs(fingerprint: str) -> bool:
        # Only what differs at first sight is worth a look at the tokenizers that grew.
        return tokenizer.is_named(fingerprint) or find_tokenizer(store, fingerprint) is not None

    _check_same(store, manifest, tokenizer, settings, ["sequence_length", "seed"], is_the_runs)


def _check_same(
    store: Store,
    manifest: CorpusManifest,
    tokenizer: RunTokenizer,
    settings: IngestSettings,
    fields: Sequence[str],
    is_same: Callable[[str], bool],
) -> None:
    own = tokenizer.fingerprint
    its = own if is_same(manifest.tokenizer) else manifest.tokenizer
    borders = ("end_of_document", "begin_of_document")
    then = manifest.settings.model_dump() | {"tokenizer": its}
    then |= {field: getattr(manifest, field) for field in borders}
    now = settings.model_dump() | {"tokenizer": own}
    now |= {field: getattr(tokenizer, field) for field in borders}
    for field in (*fields, "tokenizer", *borders):
        if then.get(field) != now.get(field):  # a dump leaves out what is at its default
            raise InputError(
                f"{store.url}/{manifest_key(manifest.name)}",
                field,
                f"the corpus was ingested with {then.get(field)}, not {now.get(field)}",
                "keep the run's value, land the corpus under another name, or start another run",
                code="ingested-differently",
            )
