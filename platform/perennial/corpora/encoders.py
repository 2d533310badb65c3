"""Encoders of text: tiktoken where it yields the ids of `tokenizers`, else `tokenizers` itself.

In both, the spelling of a special token in a text stays text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from perennial.corpora.before_split import MARK, MARK_START
from perennial.corpora.byte_bpe import ByteBpe, convert_to_tiktoken, merges_reach_all
from perennial.corpora.formats.token_ids import STORED
from perennial.corpora.special_tokens import HoldsSpecialToken, find_special_ids
from perennial.corpora.word_split import make_word_encoder

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.corpora.tokenizer import RunTokenizer

EncoderName = Literal["tiktoken", "tokenizers", "ids"]

# tiktoken's regular expressions overflow their stack on long runs of white space.
_LONG_RUNS = (" " * 1000, "\n" * 1000, "\t" * 1000, "\r\n" * 500)
_MARK = MARK.encode()


class Encoder(Protocol):
    """Encoder of texts as token ids."""

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the ids of every text, without an end-of-document."""

    def encode_documents(self, texts: Sequence[bytes | memoryview]) -> npt.NDArray[Any]:
        """Return the stored ids of all texts (UTF-8), an end-of-document after every text.

        Raises:
            HoldsSpecialToken: some can only be encoded with a special token.
        """


class TokenizersEncoder:
    """Encoder of any tokenizer, by Hugging Face `tokenizers`; word by word where that is equal."""

    def __init__(self, tokenizer: RunTokenizer) -> None:
        self._tokenizer = tokenizer.build_encoder()
        self._words = make_word_encoder(self._tokenizer, tokenizer.plain_json)
        self._end = tokenizer.end_of_document
        self._dtype = stored_type(tokenizer)
        self._special = find_special_ids(tokenizer.json, tokenizer.borders)
        self._is_special = np.zeros(tokenizer.vocabulary, dtype=bool)
        self._is_special[list(self._special)] = True

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the ids of every text.

        Raises:
            HoldsSpecialToken: the model turns some of them into a special token.
        """
        arrays = self._encode_all(texts)
        held = {
            number: self._special[int(ids[self._is_special[ids]][0])]
            for number, ids in enumerate(arrays)
            if self._is_special[ids].any()
        }
        if held:
            raise HoldsSpecialToken(held)
        return arrays

    def _encode_all(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        by_word = [self._words.encode(text) if self._words else None for text in texts]
        others = [text for text, ids in zip(texts, by_word, strict=True) if ids is None]
        encodings = iter(self._tokenizer.encode_batch_fast(others, add_special_tokens=False))
        return [
            np.array(next(encodings).ids, dtype=np.uint32) if ids is None else ids
            for ids in by_word
        ]

    def encode_documents(self, texts: Sequence[bytes | memoryview]) -> npt.NDArray[Any]:
        """Return the stored ids of all texts, an end-of-document after every text."""
        end = np.array([self._end], dtype=np.uint32)
        encoded = self.encode([str(text, "utf-8") for text in texts])
        parts = [part for ids in encoded for part in (ids, end)]
        return np.concatenate([end[:0], *parts]).astype(self._dtype)


class TiktokenEncoder:
    """Encoder of a byte-level BPE by tiktoken: the same ids, several times faster."""

    def __init__(self, tokenizer: RunTokenizer) -> None:
        converted = _convert(tokenizer)
        if converted is None:
            raise ValueError("not a byte-level BPE")
        self._before, self._encoding = converted.before, converted.encoding
        self._ids, self._sizes = converted.ids, converted.sizes.astype(np.int32)
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
        if joined.count(0) == len(texts):  # no text holds the first byte of a mark
            ranks = self._ranks(joined.decode(), {MARK, *self._before.marks})
            if ranks is not None:
                return self._stored.take(ranks)
        end = self._stored[-1:]
        parts = [part for text in texts for part in (self._encode(str(text, "utf-8")), end)]
        return np.concatenate([end[:0], *parts]).astype(self._stored.dtype)

    def _encode(self, text: str) -> npt.NDArray[np.uint32]:
        marks = set(self._before.marks)
        ranks = None if marks and MARK_START in text else self._ranks(text, marks)
        return self._slow.encode([text])[0] if ranks is None else self._ids.take(ranks)

    def _ranks(self, text: str, marks: set[str]) -> npt.NDArray[np.uint32] | None:
        """Return tiktoken's ids; None for a text that it cannot take."""
        text = self._before.apply(text)
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
        # tiktoken leaves out what its split does not match, and `tokenizers` encodes it.
        size = len(text) if text.isascii() else len(text.encode())
        return ranks if self._sizes.take(ranks).sum() == size else None


class IdsEncoder:
    """Encoder of documents that are ids already: it ends them."""

    def __init__(self, tokenizer: RunTokenizer) -> None:
        self._dtype = stored_type(tokenizer)
        self._end = np.array([tokenizer.end_of_document], dtype=self._dtype)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Raise TypeError: there is no text."""
        raise TypeError("a corpus of token ids has no text to encode")

    def encode_documents(self, texts: Sequence[bytes | memoryview]) -> npt.NDArray[Any]:
        """Return the stored ids of all documents, an end-of-document after every one."""
        documents = (np.frombuffer(text, dtype=STORED).astype(self._dtype) for text in texts)
        parts = [part for ids in documents for part in (ids, self._end)]
        return np.concatenate([self._end[:0], *parts])


def _convert(tokenizer: RunTokenizer) -> ByteBpe | None:
    """Return the tokenizer for tiktoken; None where it cannot express it."""
    converted = convert_to_tiktoken(tokenizer.plain_json)
    special = find_special_ids(tokenizer.json, tokenizer.borders)
    # Documents that become a special token are found by the other engine alone.
    return None if converted is None or np.isin(converted.ids, list(special)).any() else converted


def split_documents(ids: npt.NDArray[Any], end: int) -> list[npt.NDArray[Any]]:
    """Return the ids of every one of several documents, its end-of-document included.

    Args:
        ids: token ids of the documents `(tokens,)`, an end-of-document after every one.
        end: the id of the end of a document.
    """
    ends = np.flatnonzero(ids == end) + 1
    return np.split(ids, ends)[: len(ends)]


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
    if engine == "ids":
        return IdsEncoder(tokenizer)
    if engine == "tiktoken":
        return TiktokenEncoder(tokenizer)
    return TokenizersEncoder(tokenizer)


def choose_encoder(tokenizer: RunTokenizer, sample: Sequence[str]) -> EncoderName:
    """Return "tiktoken" if it can express the tokenizer and yields equal ids on the sample.

    Args:
        tokenizer: the run's tokenizer.
        sample: texts of the corpus.
    """
    if _convert(tokenizer) is None or not merges_reach_all(tokenizer.json):
        return "tokenizers"
    slow, fast = TokenizersEncoder(tokenizer).encode(sample), TiktokenEncoder(tokenizer)
    equal = all(map(np.array_equal, slow, fast.encode(sample)))
    return "tiktoken" if equal else "tokenizers"
