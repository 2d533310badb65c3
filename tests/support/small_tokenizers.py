"""Small tokenizers, trained on Python's own documentation."""

from __future__ import annotations

import json
from functools import cache
from pydoc_data.topics import topics
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


@cache
def _byte_level(entries: int, specials: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(topics.values())[:20], trainer=trainer)
    return tokenizer.to_str()


def byte_level_json(
    entries: int = 600, specials: tuple[str, ...] = ("<|endoftext|>",)
) -> dict[str, Any]:
    """Return a fresh copy of the tokenizer.json of a byte-level BPE."""
    content: dict[str, Any] = json.loads(_byte_level(entries, specials))
    return content
