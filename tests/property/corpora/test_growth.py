"""Continued merges: no text takes more tokens, old ids stay, and the result is one function."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from perennial.corpora.growth.extend import (
    Extension,
    extend_from_sample,
    extend_with,
    pieces_of_entries,
)
from perennial.corpora.growth.merges import MergeLearner
from perennial.errors import InputError
from tests.support.small_tokenizers import byte_level_json

FRENCH = [
    "L'été dernier, les élèves étaient à l'école ; où étaient-ils l'hiver précédent ?",
    "Quelques-unes des plus célèbres universités françaises étaient déjà là, où l'on étudiait.",
    "Les étudiants étudièrent l'économie, la géologie, et l'éthique des étrangères étoiles.",
    "élèves  élèves   élèves\n\n\tété 1999, 1999, 1999; aaaaaaaaa aaaa aaaaaaa ===== ==========",
    "naïve façade 中文 中文 \U0001f642\U0001f642 cœur cœurs œuvre œuvres",
]
KINDS = ("gpt2", "whole words", "added outside", "runs of spaces")
LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ALPHABET = sorted(set("".join(FRENCH))) + list("<|endoftext>xyz\u0301\u200b\x00\u00a0")
SPECIAL = ["<|endoftext|>", "<|fim|>", " étu", "aa", "  ", "qu'", "\r\n"]
fragments = st.sampled_from([*FRENCH, *SPECIAL])
texts = st.lists(st.one_of(fragments, st.text(ALPHABET, max_size=8), st.text(max_size=4))).map(
    "".join
)


@cache
def base_json(kind: str) -> str:
    content: dict[str, Any] = byte_level_json(600)
    if kind == "whole words":
        content["model"]["ignore_merges"] = True
        split: dict[str, Any] = {"type": "Split", "pattern": {"Regex": LLAMA3}}
        split |= {"behavior": "Isolated", "invert": False}
        level = content["pre_tokenizer"] | {"use_regex": False}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    if kind == "runs of spaces":
        content["normalizer"] = {"type": "NFC"}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    if kind == "added outside":
        tokenizer.add_special_tokens(["<|fim|>", "<|pad|>"])
    if kind == "runs of spaces":
        tokenizer.add_tokens([AddedToken("  ", normalized=False), AddedToken("   ")])
    text: str = tokenizer.to_str()
    return text


@cache
def extended(kind: str) -> Extension:
    return extend_from_sample(base_json(kind), FRENCH * 3, 120)


@cache
def tokenizers(kind: str) -> tuple[Tokenizer, Tokenizer]:
    return Tokenizer.from_str(base_json(kind)), Tokenizer.from_str(extended(kind).json)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(text=texts)
def test_no_text_takes_more_tokens_and_it_stays_the_same_text(kind: str, text: str) -> None:
    old, new = tokenizers(kind)
    before, after = old.encode(text), new.encode(text)
    assert len(after.ids) <= len(before.ids)
    assert old.decode(before.ids) == new.decode(after.ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(text=texts)
def test_the_pieces_of_new_entries_are_what_the_text_was_before(kind: str, text: str) -> None:
    """Each new entry in a text is a run of old pieces, whose text is the entry's."""
    extension = extended(kind)
    _, new = tokenizers(kind)
    pieces = pieces_of_entries(extension.json, extension.first)
    for number in new.encode(text).ids:
        if number >= extension.first:
            run = pieces[number - extension.first]
            assert len(run) > 1 and max(run) < extension.first
            spelled = "".join(str(new.id_to_token(piece)) for piece in run)
            assert spelled == new.id_to_token(number)


@pytest.mark.parametrize("kind", KINDS)
def test_old_ids_stay_and_new_ones_follow(kind: str) -> None:
    old, new = (t.get_vocab(with_added_tokens=True) for t in tokenizers(kind))
    assert old.items() <= new.items()
    extension = extended(kind)
    assert extension.first == max(old.values()) + 1
    assert [new[entry] for entry in extension.entries] == [
        *range(extension.first, extension.first + len(extension.entries))
    ]
    assert len(new) == len(old) + len(extension.entries)
    added = [json.loads(t.to_str())["added_tokens"] for t in tokenizers(kind)]
    assert added[0] == added[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_counts_are_those_of_the_tokenizers(kind: str) -> None:
    """What is learned over counted words is what `tokenizers` then does to the texts."""
    extension = extended(kind)
    old, new = tokenizers(kind)
    sample = [re.sub(" +", " ", text) for text in FRENCH]  # no added token of any kind
    again = extend_from_sample(base_json(kind), sample, 60)
    grown = Tokenizer.from_str(again.json)
    assert again.tokens_before == sum(len(old.encode(text).ids) for text in sample)
    assert again.tokens_after == sum(len(grown.encode(text).ids) for text in sample)
    assert again.size_bytes == sum(len(text.encode()) for text in sample)
    used = {number for text in FRENCH for number in new.encode(text).ids}
    by_text = new.get_vocab()
    unused = {e for e in extension.entries if by_text[e] not in used}
    assert set(extension.unreachable) <= unused


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_the_order_of_the_sample_changes_nothing(seed: int) -> None:
    shuffled = FRENCH * 3
    random.Random(seed).shuffle(shuffled)
    assert extend_from_sample(base_json("gpt2"), shuffled, 40) == extend_from_sample(
        base_json("gpt2"), FRENCH * 3, 40
    )


@pytest.mark.parametrize("kind", KINDS)
def test_growing_twice_keeps_the_first_entries(kind: str) -> None:
    once = extended(kind)
    twice = extend_from_sample(once.json, ["Straße Straßen größer größten Grüße"] * 4, 30)
    assert twice.first == once.first + len(once.entries)
    ids = Tokenizer.from_str(twice.json).get_vocab()
    assert [ids[entry] for entry in once.entries] == [
        *range(once.first, once.first + len(once.entries))
    ]
    # From the first base on, the entries of both.
    assert len(pieces_of_entries(twice.json, once.first)) == len(once.entries) + len(twice.entries)


def test_given_tokens_are_one_token_each() -> None:
    tokens = [" quotidien", "été", " étudiants", " quotidienne", "e"]
    extension = extend_with(base_json("gpt2"), tokens)
    grown = Tokenizer.from_str(extension.json)
    assert [len(grown.encode(token).ids) for token in tokens] == [1] * len(tokens)
    assert not {"Ġquotidien", "Ã©tÃ©"} & set(extension.unreachable)
    with pytest.raises(InputError) as refused:
        extend_with(base_json("gpt2"), ["deux mots"])
    assert refused.value.code == "token-is-no-word"


def test_an_entry_that_only_leads_to_another_is_reported() -> None:
    """Whole words are looked up, so that a step to one is never what is left of a text."""
    words: dict[tuple[str, ...], int] = {("q", "x", "z"): 5}
    learner = MergeLearner(words, "qxz")
    assert [entry.text for entry in learner.learn(None, 2)] == ["qx", "qxz"]
    assert learner.segmented() == {("qxz",): 5}


def test_another_kind_of_tokenizer_is_refused() -> None:
    content = byte_level_json(400)
    content["model"]["byte_fallback"] = True
    with pytest.raises(InputError) as refused:
        extend_from_sample(json.dumps(content), FRENCH, 10)
    assert refused.value.code == "tokenizer-not-extendable"
