"""Form in which texts are compared, whatever their script: words without case or spelling. Pure.

Near duplicates and evaluation texts are compared by it; equal texts are compared by their bytes.

- Words are in Unicode's compatibility form (NFKC) and case-folded, without characters that are not
  seen (soft hyphens, joiners, direction marks), so that a decomposed or full-width copy is equal.
- Combining marks belong to the word that they stand in.
- Scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese and some
  others) have no words that could be found without a dictionary: every character, with the marks
  behind it, stands for one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

FORM: Final = 2
"""version of the form; it changes when `split_words` finds other words. Version 1, of corpora whose
manifest has none, case-folded runs of letters and digits as they were encoded"""

_ASCII_WORDS = re.compile(rb"\w+")
_PLAIN_WORDS = re.compile(r"\w+")
_HEAD_BYTES = 64  # of a text, which tell that it is not in capitals
# A respelled text must spell no special token that the text itself does not.
_BRACKETS = "<>[]|"
_BASIC = 0xFFFF  # the last code point for which `re` has tables; it tries ranges beyond one by one
_LAST = 0x1FFFF  # beyond it are Chinese characters, and nothing else that is looked for
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x30FF),  # Chinese radicals, Japanese syllables
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),  # Chinese
    (0xA980, 0xA9FF),  # Javanese, Burmese
    (0xAA60, 0xAADF),  # Burmese, Tai Viet
    (0xF900, 0xFAFF),
)
_CHINESE = (0x20000, 0x3FFFF)
_IGNORED = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff"
)
"""characters that Unicode calls ignorable by default, as a part of a regular expression"""


class _Patterns(NamedTuple):
    words: re.Pattern[str]
    rare: re.Pattern[str]
    """a character beyond the first 65,536"""
    words_with_rare: re.Pattern[str]
    others: re.Pattern[str]
    """a mark, or a letter of a script without spaces"""
    ignored: re.Pattern[str]
    ignored_in_word: re.Pattern[str]
    signs: re.Pattern[str]
    """punctuation and spaces that the compatibility form spells otherwise"""


class _Unusual(NamedTuple):
    codes: npt.NDArray[np.bool_]
    """by code point: whether a text with it may be spelled in an unusual way"""
    leads: npt.NDArray[np.bool_]
    """by first byte of a character in UTF-8: whether any such character is in `codes`"""


def split_words(text: bytes | memoryview) -> list[bytes]:
    """Return the words of a text in the form in which they are compared, as UTF-8.

    Args:
        text: UTF-8.
    """
    data = bytes(text)
    if data.isascii():
        return _ASCII_WORDS.findall(data.lower())
    patterns = _patterns()
    folded = _normalize(patterns.ignored.sub("", str(data, "utf-8"))).casefold()
    folded = _normalize(folded)
    words = patterns.words if patterns.others.search(folded) else _PLAIN_WORDS
    words = patterns.words_with_rare if patterns.rare.search(folded) else words
    return " ".join(words.findall(folded)).encode().split()


def respell(texts: Sequence[bytes | memoryview]) -> dict[int, bytes]:
    """Return, by row, the texts that are spelled in an unusual way, as they are usually spelled.

    This is for what compares tokens: they change with the spelling of words, but not so that it
    matters with single capitals or punctuation. Unusual are decomposed and compatibility
    characters, invisible ones inside a word, and a text in capitals.

    Args:
        texts: UTF-8.
    """
    result = {}
    for row, may_be in enumerate(_may_be_unusual(texts)):
        # Most texts are looked at no further, which would cost more than a tenth of their encoding.
        if may_be or str(texts[row][:_HEAD_BYTES], "utf-8", "ignore").isupper():
            spelled = _respell(str(texts[row], "utf-8"))
            if spelled is not None:
                for bracket in _BRACKETS:  # several times as fast as `str.translate`
                    spelled = spelled.replace(bracket, " ")
                result[row] = spelled.encode()
    return result


def _respell(given: str) -> str | None:
    spelled, patterns = given, _patterns()
    if not given.isascii():
        spelled = patterns.signs.sub(" ", given)
    usual = not patterns.ignored_in_word.search(spelled)
    if not usual or not unicodedata.is_normalized("NFKC", spelled):
        spelled, usual = _normalize(patterns.ignored.sub("", spelled)), False
    if spelled.isupper():
        return spelled.lower()
    return None if usual else spelled


def _may_be_unusual(texts: Sequence[bytes | memoryview]) -> list[bool]:
    """Return, for every text, whether it has a character that may be spelled in an unusual way."""
    flags = np.zeros(len(texts), dtype=bool)
    rows = [row for row, text in enumerate(texts) if not bytes(text).isascii()]
    if not rows:
        return flags.tolist()
    joined = b"".join([*(texts[row] for row in rows), bytes(3)])
    data, tables = np.frombuffer(joined, dtype=np.uint8), _unusual()
    places = np.flatnonzero(tables.leads[data])
    lead, *rest = (data[places + byte].astype(np.int32) for byte in range(4))
    second, third, fourth = (byte & 0x3F for byte in rest)
    codes = (lead & 0x1F) << 6 | second
    codes = np.where(lead >= 0xE0, (lead & 0xF) << 12 | second << 6 | third, codes)
    four = (lead & 0x7) << 18 | second << 12 | third << 6 | fourth
    places = places[tables.codes[np.where(lead >= 0xF0, four, codes)]]
    ends = np.cumsum([len(texts[row]) for row in rows])
    flags[np.array(rows)[np.searchsorted(ends, places, side="right")]] = True
    return flags.tolist()


@cache
def _unusual() -> _Unusual:
    """Return the tables for texts beyond ASCII, which take a tenth of a second to make."""
    codes = np.ones(0x110000, dtype=bool)
    # What composes with the character before it is decomposed, or so it seems.
    pairs = (unicodedata.decomposition(chr(code)).split() for code in range(_LAST + 1))
    second = {pair[1] for pair in pairs if len(pair) == 2 and pair[0][0] != "<"}
    ignored = re.compile(f"[{_IGNORED}\u1161-\u1175\u11a8-\u11c2]")
    codes[: _LAST + 1] = [
        unicodedata.combining(char) > 0
        or f"{ord(char):04X}" in second
        or ignored.match(char) is not None
        or (_normalize(char) != char and not _is_sign(char))
        for char in map(chr, range(_LAST + 1))
    ]
    codes[_CHINESE[0] : _CHINESE[1] + 1] = False
    codes[0x2F800:0x2FA20] = True  # Chinese characters for compatibility
    leads = np.arange(256) > 0xF0
    for code in np.flatnonzero(codes[: _LAST + 1]).tolist():
        leads[chr(code).encode(errors="replace")[0]] = True  # of half a character: "?"
    leads[:0x80] = False
    return _Unusual(codes, leads)


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


@cache
def _patterns() -> _Patterns:
    """Return the patterns for texts beyond ASCII, which take 50 ms to make."""
    basic, rare = (range(0x80, _BASIC + 1), range(_BASIC + 1, _LAST + 1))
    blocks = [code for first, last in _UNSPACED for code in range(first, last + 1)]
    marks, unspaced = _find_ranges(basic, _is_mark), _find_ranges(blocks, str.isalpha)
    signs = _find_ranges(basic, _is_sign)
    rare_marks, rare_unspaced = _find_ranges(rare, _is_mark), _range(*_CHINESE)
    return _Patterns(
        words=_words_pattern(marks, unspaced),
        rare=re.compile(f"[{_range(_BASIC + 1, 0x10FFFF)}]"),
        words_with_rare=_words_pattern(marks + rare_marks, unspaced + rare_unspaced),
        others=re.compile(f"[{unspaced}{marks}]"),
        ignored=re.compile(f"[{_IGNORED}]"),
        ignored_in_word=re.compile(rf"[{_IGNORED}](?=\w)"),
        signs=re.compile(f"[{signs}]"),
    )


def _words_pattern(marks: str, unspaced: str) -> re.Pattern[str]:
    return re.compile(rf"[{unspaced}][{marks}]*|[^\W{unspaced}]+(?:[{marks}]+[^\W{unspaced}]*)*")


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M"


def _is_sign(char: str) -> bool:
    spelled = _normalize(char)
    return spelled != char and not any(c.isalnum() for c in spelled)


def _find_ranges(codes: Iterable[int], holds: Callable[[str], bool]) -> str:
    """Return the characters of which something holds, as a part of a regular expression."""
    ranges: list[list[int]] = []
    for code in codes:
        if holds(chr(code)):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(_range(first, last) for first, last in ranges)


def _range(first: int, last: int) -> str:
    return f"\\U{first:08x}-\\U{last:08x}"
