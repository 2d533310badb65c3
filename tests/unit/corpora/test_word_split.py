"""Encoding word by word: the ids of `tokenizers`, for the forms that SentencePiece's BPEs have."""

from __future__ import annotations

import json
import random
from functools import cache
from pydoc_data.topics import topics
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from perennial.corpora.word_split import SPACE, WordEncoder, make_word_encoder

_PREPEND = {"type": "Prepend", "prepend": SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_SPLIT = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
FORMS: dict[str, tuple[Any, Any]] = {
    "llama": ({"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]}, None),
    "gemma": (_REPLACE, _SPLIT),
    **{
        f"metaspace-{scheme}": (
            None,
            {
                "type": "Metaspace",
                "replacement": SPACE,
                "prepend_scheme": scheme,
                "split": False,
            },
        )
        for scheme in ("first", "always", "never")
    },
}


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE}+"), "merged_with_next")
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(list(topics.values())[:20], trainer=trainer)
    return tokenizer.to_str()


def _content(form: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_trained())
    content["normalizer"], content["pre_tokenizer"] = FORMS[form]
    bytes_of = [t for t in content["added_tokens"] if t["content"].startswith("<0x")]
    content["added_tokens"] = [t for t in content["added_tokens"] if t not in bytes_of]
    return content


def _make(content: dict[str, Any]) -> tuple[Tokenizer, WordEncoder | None]:
    text = json.dumps(content)
    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    return tokenizer, make_word_encoder(tokenizer, text)


def _texts() -> list[str]:
    chance, letters = random.Random(1), f"ab  {SPACE}\u00e9\n\t\U0001f600\u4e2d.</s>"
    drawn = ["".join(chance.choices(letters, k=chance.randrange(30))) for _ in range(2000)]
    return [*drawn, *list(topics.values())[:5], "", " ", "   x", "</s>", "x" * 500]


@pytest.mark.parametrize("form", FORMS)
def test_ids_are_those_of_the_whole_text(form: str) -> None:
    tokenizer, words = _make(_content(form))
    assert words is not None
    taken = 0
    for text in _texts():
        ids = words.encode(text)
        if ids is not None:
            taken += 1
            assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids, text
    assert taken > 1900
    assert words.encode("an end </s> in the text") is None


def _changed(**parts: Any) -> dict[str, Any]:
    content = _content("llama")
    for name, value in parts.items():
        place = content if name in content else content["model"]
        place[name] = value
    return content


def test_what_is_not_equal_word_by_word_is_left_to_its_library() -> None:
    joining = _content("llama")
    vocabulary = joining["model"]["vocab"]
    vocabulary[f"a{SPACE}"] = len(vocabulary)
    joining["model"]["merges"].append(["a", SPACE])
    incomplete = _content("llama")
    del incomplete["model"]["vocab"]["<0xFF>"]
    stripping = _content("llama")
    stripping["added_tokens"][1]["lstrip"] = True
    for content in (
        joining,
        incomplete,
        stripping,
        _changed(normalizer={"type": "NFC"}),
        _changed(pre_tokenizer={"type": "Whitespace"}),
        _changed(ignore_merges=True),
    ):
        assert _make(content)[1] is None


def test_the_words_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perennial.corpora.word_split._MOST_WORDS", 10)
    tokenizer, words = _make(_content("llama"))
    assert words is not None
    for text in _texts()[-10:]:
        ids = words.encode(text)
        if ids is not None:
            assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    assert len(words._words) <= 10
