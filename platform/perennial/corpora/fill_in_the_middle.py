"""Fill-in-the-middle: documents whose middle is moved to their end (arXiv 2207.14255).

A document is cut at two of its characters into prefix, middle and suffix, and three tokens
of the tokenizer separate the parts: PSM is `<prefix> prefix <suffix> suffix <middle> middle`,
SPM is `<prefix> <suffix> suffix <middle> prefix middle`. Which documents, where they are cut and in
which order their parts follow depends on their text and the seed alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from perennial.corpora.encoders import split_documents
from perennial.corpora.ingest.partition import splitmix64
from perennial.corpora.special_tokens import HoldsSpecialToken
from perennial.corpora.tokenizer_files import read_vocabulary
from perennial.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from perennial.corpora.encoders import Encoder
    from perennial.corpora.manifest import FillInTheMiddle
    from perennial.corpora.tokenizer import RunTokenizer

MARKS = 3
"""tokens that a document gains"""


class FillTokens(NamedTuple):
    """Ids of the tokens before the parts of a document."""

    prefix: int
    middle: int
    suffix: int


def find_fill_tokens(tokenizer: RunTokenizer, settings: FillInTheMiddle) -> FillTokens:
    """Return the ids of the tokens that the run file names.

    Raises:
        InputError: the tokenizer lacks one, or two are the same.
    """
    vocabulary = read_vocabulary(tokenizer.json)
    alike = sorted(t for t in vocabulary if "fim" in t.lower() or t in ("▁<PRE>", "▁<MID>"))
    for part in FillTokens._fields:
        token = getattr(settings, part)
        if token not in vocabulary:
            raise InputError(
                "run file",
                f"corpora.fill_in_the_middle.{part}",
                f"the tokenizer has no token {token!r}",
                f"name one of its own, such as {', '.join(alike[:8])}"
                if alike
                else "use a tokenizer with tokens for it, or leave fill_in_the_middle out",
                code="token-unknown",
            )
    return FillTokens(*(vocabulary[getattr(settings, part)] for part in FillTokens._fields))


class MiddleFiller:
    """Moves the middle of some documents to their end.

    A document that would not fit a row whole with its marks stays as it is: cut in two, a part of
    it would be filled from what another row holds.
    """

    def __init__(
        self, settings: FillInTheMiddle, tokens: FillTokens, seed: int, length: int, end: int
    ) -> None:
        """Prepare for documents of any corpus.

        Args:
            settings: shares of the documents.
            tokens: ids before the parts.
            seed: of the run.
            length: tokens of a row.
            end: the id that ends a document.
        """
        self._settings, self._tokens = settings, tokens
        salt = hashlib.blake2b(b"fill in the middle", digest_size=8, key=str(seed).encode())
        self._salt = np.frombuffer(salt.digest(), dtype="<u8")
        self._length, self._end = length, end

    def apply(
        self,
        texts: Sequence[bytes | memoryview],
        digests: npt.NDArray[np.uint64],
        ids: npt.NDArray[Any],
        encoder: Encoder,
    ) -> tuple[npt.NDArray[Any], int]:
        """Return the ids of documents, some of them changed, and how many.

        Args:
            texts: UTF-8 of every document.
            digests: of their texts `(documents,)`.
            ids: of all documents `(tokens,)`, an end after every one.
            encoder: of the texts.
        """
        draws = splitmix64(digests ^ self._salt)
        plain = split_documents(ids, self._end)
        fits = np.fromiter(map(len, plain), dtype=np.int64) + MARKS <= self._length
        chosen = np.flatnonzero(fits & _below(draws, self._settings.share)).tolist()
        if not chosen:
            return ids, 0
        parts = {n: _cut(str(texts[n], "utf-8"), draws[n : n + 1]) for n in chosen}
        changed = 0
        for number, encoded in self._encode(parts, encoder).items():
            filled = self._arrange(encoded, draws[number : number + 1], ids.dtype)
            if len(filled) <= self._length:
                plain[number] = filled
                changed += 1
        return np.concatenate(plain), changed

    def _encode(
        self, parts: dict[int, tuple[str, str, str]], encoder: Encoder
    ) -> dict[int, list[npt.NDArray[Any]]]:
        """Return the ids of the parts by document, without those that become a special token."""
        while True:
            numbers = list(parts)
            texts = [part.encode() for number in numbers for part in parts[number]]
            try:
                encoded = split_documents(encoder.encode_documents(texts), self._end)
            except HoldsSpecialToken as held:
                bad = {numbers[place // MARKS] for place in held.tokens}
                parts = {number: part for number, part in parts.items() if number not in bad}
                continue
            bare = [part[:-1] for part in encoded]
            return {n: bare[MARKS * i : MARKS * (i + 1)] for i, n in enumerate(numbers)}

    def _arrange(
        self, parts: list[npt.NDArray[Any]], draw: npt.NDArray[np.uint64], dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        prefix, middle, suffix = parts
        marks = {name: np.array([token], dtype) for name, token in self._tokens._asdict().items()}
        end = np.array([self._end], dtype)
        if _below(_draw(draw, 3), self._settings.spm_share).all():
            order = [marks["prefix"], marks["suffix"], suffix, marks["middle"], prefix, middle, end]
        else:
            order = [marks["prefix"], prefix, marks["suffix"], suffix, marks["middle"], middle, end]
        return np.concatenate(order)


def _cut(text: str, draw: npt.NDArray[np.uint64]) -> tuple[str, str, str]:
    """Return prefix, middle and suffix of a text, cut between characters; any may be empty."""
    places = sorted(int(_draw(draw, number)[0]) % (len(text) + 1) for number in (1, 2))
    return text[: places[0]], text[places[0] : places[1]], text[places[1] :]


def _draw(draw: npt.NDArray[np.uint64], number: int) -> npt.NDArray[np.uint64]:
    """Return other random bits of a document."""
    return splitmix64(draw + np.uint64(number))


def _below(draws: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """Return which draws are among a share of all."""
    return draws >> np.uint64(11) < np.uint64(share * 2**53)
