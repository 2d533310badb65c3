"""Held-out documents of a tokenised corpus, and the items and prompts made of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.corpora import (
    RunTokenizer,
    find_tokenizer,
    load_tokenizer,
    read_holdout,
    read_manifest,
)
from perennial.corpora.tokenizer import FIRST_TOKENIZER, GROWN
from perennial.evaluation.loss import Document

if TYPE_CHECKING:
    from perennial.store import Store

OPENING_WORDS = 24
CONTINUATION_WORDS = 12
PROMPT_WORDS = 6
CHOICES = 4


def spread(total: int, limit: int) -> list[int]:
    """Return at most `limit` indices of `range(total)`, evenly spaced, in order."""
    count = min(total, limit)
    return [i * total // count for i in range(count)]


def read_documents(
    store: Store, corpus: str, max_documents: int, tokenizer: str = FIRST_TOKENIZER
) -> list[Document]:
    """Return at most `max_documents` held-out documents of a corpus, the same ones every time.

    A corpus is read as it was tokenised. A model that lacks entries of the corpus's tokenizer reads
    the same text by its own.

    Args:
        store: the run's store.
        corpus: name of the corpus.
        max_documents: upper bound of the number of documents.
        tokenizer: key of the folder of the model's tokenizer.

    Raises:
        InputError: the corpus was not ingested.
    """
    manifest = read_manifest(store, corpus)
    begin = manifest.begin_of_document
    before = manifest.end_of_document if begin is None else begin
    chosen = spread(sum(file.documents for file in manifest.holdout), max_documents)
    documents = [
        Document(document.tokens, document.size_bytes, document.domain, before)
        for document in read_holdout(store, manifest, chosen)
    ]
    if next(iter(store.list(GROWN)), None) is None:
        return documents
    model = load_tokenizer(store, tokenizer)
    if model.is_named(manifest.tokenizer) or manifest.tokenizer in model.manifest.ancestors:
        return documents
    folder = find_tokenizer(store, manifest.tokenizer)
    if folder is None:
        return documents  # of a store whose first tokenizer was named otherwise
    return list(_read_by(model, load_tokenizer(store, folder), documents))


def _read_by(
    model: RunTokenizer, own: RunTokenizer, documents: Sequence[Document]
) -> Iterator[Document]:
    """Yield documents as the model's tokenizer has them; their own tokens are counted."""
    encoder, decoder = model.build_encoder(), own.build()
    for document in documents:
        text = decoder.decode(document.tokens[:-1].tolist(), skip_special_tokens=False)
        ids = [*encoder.encode(text, add_special_tokens=False).ids, model.end_of_document]
        tokens = np.array(ids, dtype=np.uint32)
        yield document._replace(tokens=tokens, counted=len(document.tokens))


def continuation_items(texts: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Return multiple-choice items that ask in which order words follow an opening.

    The opening is a document's first 24 words and the right continuation its next 12; the wrong
    ones are the same 12 words in other orders. So no choice is likelier for its length or for how
    common its words are, and a small model that knows which word follows which is above chance.
    An item has the keys `opening`, `choices` and `answer`, the index of the right choice. A
    document that is too short, or whose 12 words have no four orders, gives no item.
    """
    chance = random.Random(seed)
    items = []
    for text in texts:
        words = text.split()[: OPENING_WORDS + CONTINUATION_WORDS]
        right = words[OPENING_WORDS:]
        if len(right) < CONTINUATION_WORDS or len(set(right)) < CHOICES:
            continue
        orders = {" ".join(right): None}  # distinct, in the order of drawing
        while len(orders) < CHOICES:
            orders[" ".join(chance.sample(right, len(right)))] = None
        _, *choices = orders
        answer = chance.randrange(CHOICES)
        choices.insert(answer, " ".join(right))
        opening = " ".join(words[:OPENING_WORDS])
        items.append({"opening": opening, "choices": choices, "answer": answer})
    return items


def prompts(texts: Sequence[str], count: int) -> list[str]:
    """Return the first six words of `count` of the documents."""
    openings = [" ".join(text.split()[:PROMPT_WORDS]) for text in texts if text.strip()]
    return [openings[i] for i in spread(len(openings), count)]
