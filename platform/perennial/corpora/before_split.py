"""Steps of a tokenizer before a text is split: NFC, and added tokens that are cut out.

`tokenizers` cuts out added tokens that are matched as they are written, normalises what is between
them, and cuts out the other added tokens. Here every token that was cut out leaves a mark in the
text, which the fast engine takes for a special token.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

MARK_START = "\x00"
MARK = "\x00\x02"
"""Ends documents that are encoded at once.

Marks are made of the first seven characters, which hardly a text or an added token has, so that no
token is found in a mark; a text with the first of them is encoded alone. No mark begins or ends
with another one, and NFC changes none, nor what is beside it.
"""
_OF_MARKS = "\x00\x01\x02\x03\x04\x05\x06"
_PLANES = (*range(0x40000), *range(0xE0000, 0xF0000))
_CHANGES, _UNKNOWN = 1, 2
_FIRST = 0x300
"""the first character that NFC may change or join to another one"""


@dataclass(frozen=True)
class _Cut:
    """Added tokens that are looked for together: the leftmost, and of those the longest, is found.

    `pattern` has one group, which is all of it, and `marks` the mark of a token by its spelling; a
    special token stays as it is spelled.
    """

    pattern: re.Pattern[str]
    marks: Mapping[str, str]

    def apply(self, text: str) -> str:
        if not self.pattern.search(text):
            return text  # most texts, and without a copy
        parts = self.pattern.split(text)
        parts[1::2] = map(self.marks.__getitem__, parts[1::2])
        return "".join(parts)


@dataclass(frozen=True)
class BeforeSplit:
    """Steps before a text is split, in this order.

    written: cuts out the tokens that are matched as they are written.
    nfc: whether the text is normalised.
    normalized: cuts out the tokens that are matched in the normalised text.
    marks: token ids by the marks of the tokens.
    """

    written: _Cut | None = None
    nfc: bool = False
    normalized: _Cut | None = None
    marks: Mapping[str, int] = field(default_factory=dict)

    def apply(self, text: str) -> str:
        """Return documents, each followed by `MARK`, with marks for the tokens that were cut."""
        if self.written:
            text = self.written.apply(text)
        if self.nfc and not text.isascii():
            text = compose(text)
        return self.normalized.apply(text) if self.normalized else text


def find_before_split(
    normalizer: dict[str, Any] | None, added: Sequence[dict[str, Any]]
) -> BeforeSplit | None:
    """Return what a tokenizer.json does to a text before the split; None where this cannot.

    Args:
        normalizer: as the tokenizer.json has it, in its canonical form.
        added: the added tokens, likewise.
    """
    while normalizer and normalizer["type"] == "Sequence" and len(normalizer["normalizers"]) < 2:
        normalizer = next(iter(normalizer["normalizers"]), None)
    if normalizer not in (None, {"type": "NFC"}):
        return None
    plain = [token for token in added if not token["special"] and token["content"]]
    unusual = ("single_word", "lstrip", "rstrip")
    if any(token[name] for token in plain for name in unusual):
        return None
    if any(not set(_OF_MARKS).isdisjoint(token["content"]) for token in added):
        return None
    marks = {_mark_of(token): token["id"] for token in plain}
    nfc = normalizer is not None
    return BeforeSplit(_make_cut(added, False, nfc), nfc, _make_cut(added, True, nfc), marks)


def _mark_of(token: dict[str, Any]) -> str:
    digits = np.base_repr(token["id"], base=4)
    return MARK_START + "".join(_OF_MARKS[3 + int(digit)] for digit in digits) + "\x02"


def _make_cut(added: Sequence[dict[str, Any]], normalized: bool, nfc: bool) -> _Cut | None:
    from tokenizers.normalizers import NFC

    marks: dict[str, str] = {}
    for token in added:
        if token["normalized"] is normalized and token["content"]:
            content = token["content"]
            spelled = NFC().normalize_str(content) if nfc and normalized else content
            marks[spelled] = spelled if token["special"] else _mark_of(token)
    if all(spelled == mark for spelled, mark in marks.items()):
        return None  # special tokens alone, whose spelling stays text
    return _Cut(re.compile(f"({_any_of(marks)})"), marks)


def _any_of(words: Iterable[str]) -> str:
    """Return a regular expression for the longest of some words, which reads a letter once."""
    words = sorted(words)
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(words[0], words[-1], strict=False))
    start = "".join(letter for letter, _ in pairs)
    ends = [word[len(start) :] for word in words]
    parts = [_any_of(group) for letter, group in groupby(ends, lambda end: end[:1]) if letter]
    if not parts:
        return re.escape(start)
    return f"{re.escape(start)}(?:{'|'.join(parts)})" + ("?" if "" in ends else "")


def compose(text: str) -> str:
    """Return the NFC of documents that are each followed by `MARK`, as `tokenizers` computes it.

    It knows another version of Unicode than Python, so Python decides only what both agree on: a
    text whose characters Python knows, and that is normalised already.
    """
    from tokenizers.normalizers import NFC

    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    flags = _flags()[points[points >= _FIRST]]
    if not flags.any():
        return text
    doubted = bool((flags & _UNKNOWN).any())
    normalize = NFC().normalize_str
    parts = text.split(MARK)
    return MARK.join(
        part
        if part.isascii() or (not doubted and unicodedata.is_normalized("NFC", part))
        else normalize(part)
        for part in parts
    )


@cache
def _flags() -> npt.NDArray[np.uint8]:
    """Return, by code point, whether NFC may change it or a neighbour, or Python may not know it.

    The NFC of a character that is assigned never changes, by Unicode's policy of stability.
    """
    flags = np.full(0x110000, _UNKNOWN, dtype=np.uint8)
    flags[list(_PLANES)] = 0
    for point in _PLANES:
        character = chr(point)
        if unicodedata.category(character) == "Cn":
            flags[point] = _UNKNOWN
        elif unicodedata.combining(character):
            flags[point] = _CHANGES
        parts = unicodedata.decomposition(character).split()
        if parts and parts[0][0] != "<":
            flags[int(parts[-1], 16)] |= len(parts) == 2
            flags[point] |= not unicodedata.is_normalized("NFC", character)
    flags[0x1161:0x1176] = flags[0x11A8:0x11C3] = _CHANGES  # letters that end a Hangul syllable
    return flags
