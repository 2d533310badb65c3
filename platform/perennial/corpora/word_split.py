"""Encoding word by word for tokenizers that merge a whole document at once, as SentencePiece does.

Llama 2, Gemma and other BPEs that were converted from SentencePiece spell a space as "\u2581" and
have no split of text into words. Where no merge joins what stands before a space with the space, a
document's ids are those of its words, one after the other, and a word that came before is looked
up. What a text becomes before it is merged is then spelled out here, for the forms in which those
tokenizers say it; every other tokenizer, and a text with an added token in it, is left to
`tokenizers`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer

SPACE = "\u2581"
_WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
_MOST_WORDS = 1 << 20
_LONGEST_WORD = 64  # characters; a longer one hardly comes again
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_SPLIT = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
"""after the spaces were replaced it divides nothing"""


class WordEncoder:
    """Ids of texts by their words.

    Args:
        tokenizer: a tokenizer that can be taken word by word; see `make_word_encoder`.
        prepend: "always", "unless-space" (where a text does not begin with one) or "never".
        added: texts of the added tokens.
    """

    def __init__(self, tokenizer: Tokenizer, prepend: str, added: list[str]) -> None:
        self._words = _Words(tokenizer.model)
        self._prepend = prepend
        self._added = re.compile("|".join(map(re.escape, added))) if added else None

    def encode(self, text: str) -> npt.NDArray[np.uint32] | None:
        """Return the ids of a text; None for one that has to be left to `tokenizers`."""
        if self._added is not None and self._added.search(text):
            return None
        spelled = text.replace(" ", SPACE)
        if text and (
            self._prepend == "always"
            or (self._prepend == "unless-space" and not spelled.startswith(SPACE))
        ):
            spelled = SPACE + spelled
        ids = b"".join(map(self._words.__getitem__, _WORD.findall(spelled)))
        return np.frombuffer(ids, dtype=np.uint32)


class _Words(dict[str, bytes]):
    """The ids of words as bytes, computed when a word comes first."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def __missing__(self, word: str) -> bytes:
        tokens = self._model.tokenize(word)
        ids = np.array([token.id for token in tokens], dtype=np.uint32).tobytes()
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids


def make_word_encoder(tokenizer: Tokenizer, tokenizer_json: str) -> WordEncoder | None:
    """Return an encoder with the same ids; None where the tokenizer is of another kind.

    Args:
        tokenizer: the tokenizer.
        tokenizer_json: its text.
    """
    content = parse_json(tokenizer_json)
    prepend = _find_prepend(content["normalizer"], content["pre_tokenizer"])
    added = content["added_tokens"]
    plain = all(not (t["lstrip"] or t["rstrip"] or t["single_word"]) for t in added)
    if prepend is None or not plain or not _can_split(content["model"]):
        return None
    # An added token may be looked for in the text as it is given or as it is spelled.
    texts = {text for t in added for text in (t["content"], t["content"].replace(SPACE, " "))}
    return WordEncoder(tokenizer, prepend, sorted(texts))


def _find_prepend(
    normalizer: dict[str, Any] | None, pre_tokenizer: dict[str, Any] | None
) -> str | None:
    """Return when a space is put before a text; None for what is not known here."""
    match normalizer:
        case {"type": "Sequence", "normalizers": list(steps)}:
            pass
        case None:
            steps = []
        case _:
            steps = [normalizer]
    if steps in ([_PREPEND, _REPLACE], [_REPLACE]) and pre_tokenizer in (None, _SPLIT):
        return "always" if _PREPEND in steps else "never"
    match pre_tokenizer:
        case {"type": "Metaspace", "replacement": "\u2581", "split": False, **rest} if not steps:
            return "never" if rest.get("prepend_scheme") == "never" else "unless-space"
    return None


def _can_split(model: dict[str, Any]) -> bool:
    """Return whether no token of a model goes over the place before a space."""
    unusual = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if model["type"] != "BPE" or any(model.get(name) for name in unusual):
        return False
    vocabulary = model["vocab"]
    # Unknown characters in a row may become one token, unless each has its bytes.
    is_complete = model.get("byte_fallback") and all(
        f"<0x{byte:02X}>" in vocabulary for byte in range(256)
    )
    if SPACE not in vocabulary or (model.get("fuse_unk") and not is_complete):
        return False
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return not any(SPACE in f"{left}{right}".lstrip(SPACE) for left, right in pairs)
