"""Training of a run's tokenizer on a sample of its first corpus."""

from __future__ import annotations

import re
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
    from collections.abc import Iterable, Iterator

    from tokenizers import Tokenizer

    from perennial.corpora.manifest import IngestSettings
    from perennial.store import Store

SMALLEST_VOCABULARY = 257
"""256 bytes and the end of a document"""
_SAMPLE_BYTES = 64 << 20
_LONGEST_RUN = 1000
_LONG_RUN = re.compile(
    "|".join(f"{kind}{{{_LONGEST_RUN}}}" for kind in (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)"))
)
_LONG_BLANK = re.compile(rf"\s{{{_LONGEST_RUN},}}")


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
    trained = _train(cut_long_runs(texts), vocabulary)
    if trained.get_vocab_size() <= SMALLEST_VOCABULARY < vocabulary:
        # Imported here: it loads pyarrow, which a look at a run's tokenizer needs not.
        from perennial.corpora.ingest.quality import refuse_sample

        raise refuse_sample(store, inbox, landed, settings, _SAMPLE_BYTES)
    tokenizer = build_tokenizer(trained.to_str(), END_OF_DOCUMENT, "trained", vocabulary)
    return commit_tokenizer(store, tokenizer)


def cut_long_runs(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts with a line break in runs that no word is as long as, such as a genome's letters.

    Such a run of white space is cut off. The time of training grows with the square of the longest
    run.
    """
    for text in texts:
        text = _LONG_BLANK.sub(lambda run: run[0][:100], text)
        is_long = max(map(len, text.split()), default=0) > _LONGEST_RUN
        yield _LONG_RUN.sub(r"\g<0>\n", text) if is_long else text


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
