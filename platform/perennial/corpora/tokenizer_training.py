"""Training of a run's tokenizer on a sample of its first corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.corpora.inbox import LandedCorpus, read_landed
from perennial.corpora.ingest.sample import check_sampled, sample_texts
from perennial.corpora.tokenizer import (
    MANIFEST_KEY,
    RunTokenizer,
    build_tokenizer,
    commit_tokenizer,
    load_tokenizer,
    tokenizer_differs,
)
from perennial.corpora.tokenizer_files import END_OF_DOCUMENT
from perennial.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenizers import Tokenizer

    from perennial.corpora.manifest import IngestSettings
    from perennial.store import Store

SMALLEST_VOCABULARY = 257
"""256 bytes and the end of a document"""
_SAMPLE_BYTES = 64 << 20


def train_tokenizer(
    store: Store,
    inbox: Store,
    name: str,
    vocabulary: int,
    settings: IngestSettings,
    landed: LandedCorpus | None = None,
) -> RunTokenizer:
    """Train a byte-level BPE with GPT-2's split on a sample of a landed corpus.

    Held-out documents are not in the sample. Where the store has a tokenizer that was trained for
    the same vocabulary, that one is returned.

    Args:
        store: the run's store, which gets the tokenizer.
        inbox: the store that the corpus landed in.
        name: the corpus's name.
        vocabulary: entries of the vocabulary, at least 257.
        settings: how documents are found in the corpus.
        landed: the corpus as `check_landed` returned it; default: as it is now.

    Raises:
        InputError: for a vocabulary that is too small, a store with another tokenizer, a corpus
            without text, or a sampled file that is not what its producer promised.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise InputError(
            "tokenizer",
            "vocabulary",
            f"{vocabulary} entries cannot hold every byte",
            f"use at least {SMALLEST_VOCABULARY}",
            code="vocabulary-too-small",
        )
    if store.exists(MANIFEST_KEY):
        present = load_tokenizer(store)
        if present.manifest.asked_vocabulary != vocabulary:
            asked = present.manifest.asked_vocabulary
            raise tokenizer_differs(store, "asked_vocabulary", asked, vocabulary)
        return present
    landed = landed or read_landed(inbox, name)
    check_sampled(inbox, landed, _SAMPLE_BYTES)
    texts = sample_texts(inbox, landed, settings, _SAMPLE_BYTES)
    trained = _train(texts, vocabulary)
    if trained.get_vocab_size() <= SMALLEST_VOCABULARY < vocabulary:
        raise InputError(
            f"{inbox.url}/{name}",
            settings.text_field,
            "there is no text to train a tokenizer on",
            "land documents with text",
            code="no-text",
        )
    tokenizer = build_tokenizer(trained.to_str(), END_OF_DOCUMENT, "trained", vocabulary)
    return commit_tokenizer(store, tokenizer)


def _train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer
