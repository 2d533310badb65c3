"""Encoders of text: tiktoken where it yields the ids of `tokenizers`, else `tokenizers` itself.

In both, the spelling of a special token in a text stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from perennial.corpora.tokenizer import canonical_json
from perennial.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt
    import tiktoken

    from perennial.corpora.tokenizer import RunTokenizer

EncoderName = Literal["tiktoken", "tokenizers"]

# tiktoken's regular expressions overflow their stack on long runs of white space.
_LONG_RUNS = (" " * 1000, "\n" * 1000, "\t" * 1000, "\r\n" * 500)
# Separates documents that are encoded at once. No proper beginning of it is an end of it, so
# occurrences never overlap: as many marks as documents means that no text holds one.
_MARK = b"\x00\x01end of document\x02"
_GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\[\]\\])*\]|.", re.DOTALL)
"""of a regular expression: an escaped character, a class, or a character"""
_FLAGS = re.compile(r"\(\?[a-zA-Z-]+\)")
_HARD = re.compile(r"\(\?(?![a-zA-Z-]*:)|[+*?]\+|\{[\d,]+\}\+|\\[1-9GKXkg]")
"""look-around, atomic and named groups, possessive repeats, references"""


class Encoder(Protocol):
    """Encoder of texts as token ids."""

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the ids of every text, without an end-of-document."""

    def encode_documents(self, texts: Sequence[bytes | memoryview]) -> npt.NDArray[Any]:
        """Return the stored ids of all texts (UTF-8), an end-of-document after every text."""


class TokenizersEncoder:
    """Encoder of any tokenizer, by Hugging Face `tokenizers`."""

    def __init__(self, tokenizer: RunTokenizer) -> None:
        self._tokenizer = tokenizer.build()
        self._end = tokenizer.end_of_document
        self._dtype = stored_type(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the ids of every text. Raises InputError if one holds an end-of-document."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        arrays = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        if any((ids == self._end).any() for ids in arrays):
            raise InputError(
                "tokenizer/tokenizer.json",
                "end of document",
                "the tokenizer turns text into its end-of-document token",
                "use a tokenizer whose end-of-document token is special and not a piece of text",
                code="end-of-document-in-text",
            )
        return arrays

    def encode_documents(self, texts: Sequence[bytes | memoryview]) -> npt.NDArray[Any]:
        """Return the stored ids of all texts, an end-of-document after every text."""
        end = np.array([self._end], dtype=np.uint32)
        encoded = self.encode([str(text, "utf-8") for text in texts])
        parts = [part for ids in encoded for part in (ids, end)]
        return np.concatenate([end[:0], *parts]).astype(self._dtype)


class TiktokenEncoder:
    """Encoder of a byte-level BPE by tiktoken: the same ids, several times faster."""

    def __init__(self, tokenizer: RunTokenizer) -> None:
        converted = convert_to_tiktoken(tokenizer.json)
        if converted is None:
            raise ValueError("not a byte-level BPE")
        self._encoding, self._ids = converted
        self._mark = _MARK.decode()
        end = np.uint32(tokenizer.end_of_document)
        self._stored = np.append(self._ids, end).astype(stored_type(tokenizer))
        self._slow = TokenizersEncoder(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the ids of every text."""
        return [self._encode(text) for text in texts]

    def encode_documents(self, texts: Sequence[bytes | memoryview]) -> npt.NDArray[Any]:
        """Return the stored ids of all texts, an end-of-document after every text."""
        # One call for all: a call, an array and a copy for every text cost a tenth of the time.
        joined = _MARK.join([*texts, b""])
        if joined.count(_MARK) == len(texts):
            ranks = self._ranks(joined.decode(), {self._mark})
            if ranks is not None:
                return np.asarray(self._stored[ranks])
        end = self._stored[-1:]
        parts = [part for text in texts for part in (self._encode(str(text, "utf-8")), end)]
        return np.concatenate([end[:0], *parts]).astype(self._stored.dtype)

    def _encode(self, text: str) -> npt.NDArray[np.uint32]:
        ranks = self._ranks(text, set())
        return self._slow.encode([text])[0] if ranks is None else np.asarray(self._ids[ranks])

    def _ranks(self, text: str, marks: set[str]) -> npt.NDArray[np.uint32] | None:
        """Return tiktoken's ids; None for a text that it cannot take."""
        if any(run in text for run in _LONG_RUNS):
            return None
        try:
            # Not `encode`: making its list of numbers costs a tenth of the encoding.
            ranks: npt.NDArray[np.uint32] = self._encoding.encode_to_numpy(
                text, allowed_special=marks, disallowed_special=()
            )
        except BaseException as error:
            # A stack overflow in tiktoken's Rust is a PanicException, which is no Exception and
            # cannot be imported; everything else, a request to end included, passes through.
            if type(error).__name__ != "PanicException":
                raise
            return None
        return ranks


def stored_type(tokenizer: RunTokenizer) -> np.dtype[Any]:
    """Return the type of a stored token id."""
    return np.dtype(f"<u{tokenizer.token_bytes}")


@lru_cache(maxsize=1)
def make_encoder(tokenizer: RunTokenizer, engine: EncoderName) -> Encoder:
    """Return an encoder; it is kept for a worker's next task, since building it takes seconds.

    Args:
        tokenizer: the run's tokenizer.
        engine: the library that encodes; `choose_encoder` returns it.
    """
    if engine == "tiktoken":
        return TiktokenEncoder(tokenizer)
    return TokenizersEncoder(tokenizer)


def choose_encoder(tokenizer: RunTokenizer, sample: Sequence[str]) -> EncoderName:
    """Return "tiktoken" if it can express the tokenizer and yields equal ids on the sample.

    Args:
        tokenizer: the run's tokenizer.
        sample: texts of the corpus.
    """
    if convert_to_tiktoken(tokenizer.json) is None:
        return "tokenizers"
    slow, fast = TokenizersEncoder(tokenizer).encode(sample), TiktokenEncoder(tokenizer)
    equal = all(map(np.array_equal, slow, fast.encode(sample)))
    return "tiktoken" if equal else "tokenizers"


def convert_to_tiktoken(
    tokenizer_json: str,
) -> tuple[tiktoken.Encoding, npt.NDArray[np.uint32]] | None:
    """Convert a byte-level BPE to tiktoken.

    Returns:
        tiktoken's encoding and the table `(ranks,)` from its ranks to token ids; None where
        tiktoken cannot express the tokenizer.
    """
    # Stores of before 0.2 hold the file as it was, with keys left out that mean their defaults.
    content = json.loads(canonical_json(tokenizer_json))
    model, pattern = content["model"], _split_pattern(content.get("pre_tokenizer"))
    if pattern is None or content.get("normalizer") or not _is_plain_bpe(model):
        return None
    if any(not token["special"] for token in content["added_tokens"]):
        return None  # matched before the split, which tiktoken would not do
    alphabet = byte_alphabet()
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    symbols = [*alphabet, *(left + right for left, right in merges)]
    ranks: dict[bytes, int] = {}
    ids: list[int] = []
    for symbol in symbols:
        if symbol not in model["vocab"] or any(c not in alphabet for c in symbol):
            return None
        token = bytes(alphabet[c] for c in symbol)
        if token not in ranks:
            ranks[token] = len(ids)
            ids.append(model["vocab"][symbol])
    import tiktoken

    marks = {_MARK.decode(): len(ids)}
    encoding = tiktoken.Encoding(
        "run", pat_str=group_alternatives(pattern), mergeable_ranks=ranks, special_tokens=marks
    )
    return encoding, np.array(ids, dtype=np.uint32)


def _is_plain_bpe(model: dict[str, Any]) -> bool:
    unusual = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    return model["type"] == "BPE" and not any(model.get(name) for name in unusual)


def _split_pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """Return the regular expression that splits text for a byte-level BPE, None if another kind."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return _GPT2_SPLIT
        case {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": str(pattern)},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    return None


def group_alternatives(pattern: str) -> str:
    """Return an equal regular expression with neighbouring plain alternatives in one group.

    tiktoken's regular expressions give a group that has no look-around as a whole to an automaton,
    and try alternatives one by one otherwise: this makes the encoding 1.7 times as fast.
    """
    alternatives, depth = [""], 0
    for token in _TOKEN.findall(pattern):
        if token == "[" or depth < 0:
            return pattern  # a class inside a class, or nothing that this parses
        depth += (token == "(") - (token == ")")
        if token == "|" and depth == 0:
            alternatives.append("")
        else:
            alternatives[-1] += token
    if depth or _FLAGS.search(pattern):
        return pattern
    runs = groupby(alternatives, key=lambda alternative: bool(_HARD.search(alternative)))
    return "|".join("|".join(run) if is_hard else f"(?:{'|'.join(run)})" for is_hard, run in runs)


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable characters and the bytes that they stand for."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}
