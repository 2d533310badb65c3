"""The fast engine gives the ids of `tokenizers`, or is not chosen, for every kind of tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import NFC

from perennial.corpora import RunTokenizer
from perennial.corpora.before_split import MARK, _any_of, _flags
from perennial.corpora.encoders import TiktokenEncoder, TokenizersEncoder, choose_encoder
from perennial.corpora.tokenizer import build_tokenizer
from tests.support.small_tokenizers import byte_level_json

Content = dict[str, Any]
no_deadline = settings(deadline=None, max_examples=60)
TEXTS = [*list(topics.values())[:15], "日本語 été 🎉🎉\x00\x7f", "", "  a\n\n\tb  "]
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PLAIN_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
GPT2_BYTES = {**PLAIN_BYTES, "use_regex": True}
ADDED = {"single_word": False, "lstrip": False, "rstrip": False}


def add(content: Content, *spelled: str, special: bool = False, **flags: bool) -> None:
    for text in spelled:
        number = len(content["model"]["vocab"]) + len(content["added_tokens"]) - 1
        token = {"id": number, "content": text, "special": special, "normalized": False}
        content["added_tokens"].append(token | ADDED | flags)


def in_order(content: Content, *steps: Content) -> None:
    whole = [{"trim_offsets": True, **step} for step in steps]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": whole}


def split(content: Content, pattern: str, behavior: str = "Isolated", invert: bool = False) -> None:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
    in_order(content, step, PLAIN_BYTES)


def gpt2(content: Content) -> None:
    pass


def neox(content: Content) -> None:
    """NFC, and runs of spaces that are cut out of the normalised text."""
    content["normalizer"] = {"type": "NFC"}
    add(content, *(" " * size for size in range(8, 1, -1)), normalized=True)
    for byte in (0xC0, 0xF5, 0xFF):  # which no text has
        symbol = next(s for s, i in content["model"]["vocab"].items() if s == chr(byte))
        content["model"]["vocab"][f"unused {byte}"] = content["model"]["vocab"].pop(symbol)


def qwen(content: Content) -> None:
    """NFC in a sequence, tokens of both kinds, special ones that hold or begin others."""
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    add(content, "<think>", "<thin", "k>", "a>", "<|end")
    add(content, "<|endoftext|><think>", "think", special=True)
    add(content, "e\u0301", "=\u0338", "nk", "\u0323x", normalized=True)
    split(content, LLAMA)


def llama(content: Content) -> None:
    content["model"]["ignore_merges"] = True
    split(content, LLAMA)


def smol(content: Content) -> None:
    in_order(content, {"type": "Digits", "individual_digits": True}, GPT2_BYTES)


def digits(content: Content) -> None:
    in_order(content, {"type": "Digits", "individual_digits": False}, GPT2_BYTES)


def leaving_out(content: Content) -> None:
    """A split that does not match everything."""
    split(content, r" ?[a-z]+|\s+")


def kept(content: Content) -> None:
    split(content, LLAMA, "Removed", True)


def added_without_normalizer(content: Content) -> None:
    add(content, "ab", "abc", "b\n", "  ")
    add(content, "c", " \n", "12", normalized=True)


FAST = [gpt2, neox, qwen, llama, smol, digits, leaving_out, kept, added_without_normalizer]


def built(make: Callable[[Content], None]) -> RunTokenizer:
    content = byte_level_json()
    make(content)
    return build_tokenizer(json.dumps(content), "<|endoftext|>", "imported", None)


@cache
def engines(
    make: Callable[[Content], None],
) -> tuple[RunTokenizer, TokenizersEncoder, TiktokenEncoder]:
    tokenizer = built(make)
    return tokenizer, TokenizersEncoder(tokenizer), TiktokenEncoder(tokenizer)


# fmt: off
PIECES = [
    "<|endoftext|>", "<think>", "<thin", "k>", "<", ">", "think", "nk", "ab", "abc", "12",
    "e\u0301", "e\u0323\u0302", "=\u0338", ">\u0338", "\u0323", "\u0301x", "\u212b", "한",
    "\u1112\u1161\u11ab", "\u09c7\u09be", "\u0378", "\U0001e030", "\u0ece\u0323", "日本",
    " ", "  ", "   ", "\n", " \n", "\t", "\r\n", "\u2003", "\x85", " " * 9, " 7", "007", "Ⅷ",
    "\x00", "\x00\x01", "\x02", MARK, "\x00\x05\x04\x04\x03\x04\x02", "'s", "'LL", ".", "aB", "🎉",
]
# fmt: on
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


@pytest.mark.parametrize("make", FAST)
@no_deadline
@given(documents=st.lists(texts, max_size=4))
@example(documents=["<think>\u0338", "\u0323x  \u0323x", "<|endoftext|><think>>\u0338"])
@example(documents=["a   1", "  \n   x  ", "x" + " " * 30 + "y"])
def test_both_engines_give_the_same_ids(
    make: Callable[[Content], None], documents: list[str]
) -> None:
    _, slow, fast = engines(make)
    for text, expected, found in zip(
        documents, slow.encode(documents), fast.encode(documents), strict=True
    ):
        np.testing.assert_array_equal(found, expected, err_msg=repr(text))
    stored = [document.encode() for document in documents]
    np.testing.assert_array_equal(fast.encode_documents(stored), slow.encode_documents(stored))


@pytest.mark.parametrize("make", FAST)
def test_the_fast_engine_is_chosen_and_agrees_on_prose(make: Callable[[Content], None]) -> None:
    tokenizer, slow, fast = engines(make)
    assert choose_encoder(tokenizer, ["a sample"]) == "tiktoken"
    stored = [text.encode() for text in TEXTS]
    np.testing.assert_array_equal(fast.encode_documents(stored), slow.encode_documents(stored))


def lowered(content: Content) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def stripped(content: Content) -> None:
    add(content, "<mask>", lstrip=True)


def of_single_words(content: Content) -> None:
    add(content, "word", single_word=True)


def with_marks(content: Content) -> None:
    add(content, "\x00\x01")


def falling_back(content: Content) -> None:
    content["model"]["byte_fallback"] = True


def without_a_byte(content: Content) -> None:
    content["model"]["vocab"]["unused"] = content["model"]["vocab"].pop("z")


def with_whole_words(content: Content) -> None:
    content["model"]["ignore_merges"] = True
    content["model"]["vocab"]["zqzq"] = len(content["model"]["vocab"])


def marked(content: Content) -> None:
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}


@pytest.mark.parametrize(
    "make",
    [
        lowered,
        stripped,
        of_single_words,
        with_marks,
        falling_back,
        without_a_byte,
        with_whole_words,
        marked,
    ],
)
def test_what_the_fast_engine_cannot_do_keeps_its_own(make: Callable[[Content], None]) -> None:
    assert choose_encoder(built(make), []) == "tokenizers"


def test_what_no_flag_marks_never_changes() -> None:
    unmarked = np.flatnonzero(_flags() == 0)
    assert len(unmarked) > 140_000
    text = "".join(chr(p) for p in unmarked if not 0xD800 <= p < 0xE000)
    assert NFC().normalize_str(text) == text


@given(words=st.sets(st.text(alphabet="ab(\\", min_size=1, max_size=4), min_size=1), text=texts)
def test_the_longest_of_some_words_is_found(words: set[str], text: str) -> None:
    by_length = sorted(words, key=len, reverse=True)
    expected = re.findall("|".join(map(re.escape, by_length)), text + "ab(\\")
    assert re.findall(_any_of(words), text + "ab(\\") == expected
