"""Reuse of the corpora that another run tokenised, for a run that is compared with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.corpora.compatibility import check_same_settings
from perennial.corpora.ingest.sample import list_inputs
from perennial.corpora.manifest import CorpusManifest, IngestSettings, manifest_key
from perennial.corpora.tokenizer import (
    BASE,
    MANIFEST_KEY,
    TOKENIZER_KEY,
    RunTokenizer,
    load_tokenizer,
    read_base_files,
)
from perennial.errors import InputError
from perennial.store import copy_checked

if TYPE_CHECKING:
    from collections.abc import Callable

    from perennial.corpora.inbox import LandedCorpus
    from perennial.store import Store


def borrow_tokenizer(store: Store, lender: Store) -> None:
    """Copy the tokenizer of another run, where it has one and this one has none.

    Args:
        store: the store of the run that needs a tokenizer.
        lender: the store of the other run.
    """
    if lender.exists(MANIFEST_KEY) and not store.exists(MANIFEST_KEY):
        tokenizer = load_tokenizer(lender)  # compared with its fingerprint
        for name, data in read_base_files(lender, tokenizer).items():
            store.write(f"{BASE}/{name}", data)
        store.write(TOKENIZER_KEY, tokenizer.json.encode())
        # The manifest comes last: a tokenizer exists when its manifest does (invariant I6).
        store.create(MANIFEST_KEY, lender.read(MANIFEST_KEY))


def borrow_corpus(
    store: Store,
    lender: Store,
    landed: LandedCorpus,
    tokenizer: RunTokenizer,
    settings: IngestSettings,
    accept: Callable[[CorpusManifest], object] = lambda manifest: None,
) -> CorpusManifest | None:
    """Copy a corpus that another run tokenised from the same files.

    The manifest comes last (invariant I6), so this may be killed and repeated.

    Args:
        store: the store of the run that needs the corpus.
        lender: the store of the other run.
        landed: the corpus in the inbox.
        tokenizer: the run's tokenizer.
        settings: how the run would ingest the corpus.
        accept: called with the manifest before anything is copied; raises InputError to refuse.

    Returns:
        The corpus's manifest; None when the other run has no corpus of that name.

    Raises:
        InputError: when the other run tokenised other files of that name, or in another way, or
            something of it was erased there.
        Altered: a file of the other run is missing or has another digest than its manifest says.
    """
    name = landed.name
    if not lender.exists(manifest_key(name)):
        return None
    manifest = check_same_settings(lender, name, tokenizer, settings)
    mine = {(file.name, file.size_bytes, file.etag) for file in list_inputs(landed)}
    if mine != {(file.name, file.size_bytes, file.etag) for file in manifest.inputs}:
        raise InputError(
            "run file",
            "corpora.borrow",
            f"{name} was tokenised from other files in {lender.url}",
            "name that run's inbox as `inbox`, or leave corpora.borrow out",
            code="borrowed-files-differ",
        )
    if manifest.erasures:
        raise InputError(
            "run file",
            "corpora.borrow",
            f"something of {name} was erased in {lender.url}",
            "leave corpora.borrow out, and land what may be trained",
            code="borrowed-corpus-erased",
        )
    accept(manifest)
    for file in manifest.files:
        key = f"corpora/{name}/{file.file}"
        copy_checked(lender, key, store, key, file.sha256)
    store.create(manifest_key(name), lender.read(manifest_key(name)))
    return manifest
