"""Appending of entries to a byte-level BPE, after all ids that it has."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from perennial.corpora.byte_bpe import byte_alphabet
from perennial.corpora.growth.merges import LearnedEntry, MergeLearner, Word
from perennial.corpora.tokenizer import canonical_json
from perennial.corpora.tokenizer_files import read_vocabulary
from perennial.errors import InputError
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FEWEST = 2
"""occurrences of a pair in a sample that are worth an entry"""
_UNUSUAL = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")


class OwnIds(BaseModel):
    """A vocabulary of a corpus's own: its documents are ids below `ids`, and no text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: int = Field(ge=1)


Asked = int | tuple[str, ...] | OwnIds
"""entries to learn over a sample of a corpus, the tokens to add, or a vocabulary of its own"""


@dataclass(frozen=True)
class Extension:
    """A tokenizer with entries appended, and what they do to the words that they were found in.

    json: its tokenizer.json in canonical form.
    first: id of the first new entry; those after it have the ids after it.
    entries: the new entries in the vocabulary's characters, in the order of their ids.
    unreachable: those of them that no word of the sample has in the end, and that their own text
        does not become: steps to longer entries alone.
    tokens_before, tokens_after: of the sample, by the tokenizer without and with the entries.
    size_bytes: of the sample.
    """

    json: str
    first: int
    entries: tuple[str, ...]
    unreachable: tuple[str, ...]
    tokens_before: int
    tokens_after: int
    size_bytes: int

    @property
    def saved_share(self) -> float:
        """Return the share of the sample's tokens that the entries save."""
        return 1 - self.tokens_after / self.tokens_before if self.tokens_before else 0.0


def extend_from_sample(tokenizer_json: str, texts: Iterable[str], entries: int) -> Extension:
    """Return a tokenizer with entries learned over the words of a sample.

    Args:
        tokenizer_json: text of the tokenizer.json to start from.
        texts: the sample.
        entries: most entries to append; a small sample yields fewer.

    Raises:
        InputError: it is no byte-level BPE.
    """
    base = _Base(tokenizer_json)
    words = base.segment(base.count_words(texts))
    return base.extend(words, entries, _FEWEST)


def extend_with(tokenizer_json: str, tokens: Sequence[str]) -> Extension:
    """Return a tokenizer that makes one token of each of the given texts, where it stands alone.

    The entries on the way to a token are appended too.

    Args:
        tokenizer_json: text of the tokenizer.json to start from.
        tokens: texts, such as " quotidien" with the space before the word.

    Raises:
        InputError: it is no byte-level BPE, or it splits one of the texts in several words.
    """
    base = _Base(tokenizer_json)
    counted: Counter[str] = Counter()
    for token in tokens:
        words = list(base.split(token))
        if len(words) != 1:
            raise InputError(
                "run file",
                "extend_tokenizer.tokens",
                f"{token!r} is {len(words)} words for this tokenizer, which never joins words",
                "name one word, with the space before it where it has one",
                code="token-is-no-word",
            )
        counted[words[0]] = 1
    return base.extend(base.segment(counted), None, 1)


def extend_with_own(tokenizer_json: str, corpus: str, own: OwnIds) -> Extension:
    """Return a tokenizer with an entry for each id of a corpus's own, in their order.

    The entries are special tokens: no text becomes one, and none of them is a piece of text. Id 3
    of the corpus `digits` is spelled `<|digits:3|>`, which is what a model without the entry reads.

    Args:
        tokenizer_json: text of the tokenizer.json to start from.
        corpus: its name.
        own: the ids.

    Raises:
        InputError: it is no byte-level BPE, or has a token of that spelling.
    """
    base = _Base(tokenizer_json)
    return base.append_special([f"<|{corpus}:{number}|>" for number in range(own.ids)])


def pieces_of_entries(tokenizer_json: str, first: int) -> list[list[int]]:
    """Return, for each entry from an id on, the ids below it that its text was made of before.

    Args:
        tokenizer_json: text of the tokenizer.json with the entries.
        first: id of the first of them.
    """
    from tokenizers import Tokenizer

    content = parse_json(canonical_json(tokenizer_json))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    new = sorted(
        (text for text, number in vocabulary.items() if number >= first),
        key=vocabulary.__getitem__,
    )
    without = set(new)
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in without]
    content["model"]["vocab"] = {t: n for t, n in vocabulary.items() if t not in without}
    content["model"]["merges"] = [
        [left, right] for left, right in content["model"]["merges"] if left + right not in without
    ]
    model = Tokenizer.from_str(json.dumps(content, ensure_ascii=False)).model
    return [[piece.id for piece in model.tokenize(text)] for text in new]


class _Base:
    """The tokenizer that is extended."""

    def __init__(self, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer

        self._content: dict[str, Any] = parse_json(canonical_json(tokenizer_json))
        self._check()
        self._tokenizer: Tokenizer = Tokenizer.from_str(tokenizer_json)
        self._first = max(read_vocabulary(tokenizer_json).values()) + 1
        plain = (t["content"] for t in self._content["added_tokens"] if not t["special"])
        longest_first = sorted(filter(None, plain), key=lambda text: (-len(text), text))
        # An added token that is plain text, such as a run of spaces, is cut out before the split.
        self._added = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _check(self) -> None:
        model = self._content["model"]
        is_plain = model["type"] == "BPE" and not any(model[name] for name in _UNUSUAL)
        if not is_plain or "ByteLevel" not in _kinds(self._content["pre_tokenizer"]):
            raise InputError(
                "run file",
                "extend_tokenizer",
                "the run's tokenizer is no byte-level BPE, whose merges alone can be continued",
                "leave it out, or start a run with another tokenizer",
                code="tokenizer-not-extendable",
            )

    def split(self, text: str) -> Iterator[str]:
        """Yield the words of a text, in the vocabulary's characters."""
        normalizer, splitter = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        for part in self._added.split(text):
            whole = part if normalizer is None else normalizer.normalize_str(part)
            if whole:
                yield from (word for word, _ in splitter.pre_tokenize_str(whole))

    def count_words(self, texts: Iterable[str]) -> Counter[str]:
        """Return how often each word occurs in texts."""
        counted: Counter[str] = Counter()
        for text in texts:
            counted.update(self.split(text))
        return counted

    def segment(self, counted: Mapping[str, int]) -> dict[Word, int]:
        """Return how often words occur, by the pieces that the tokenizer makes of each.

        In the order of the alphabet, so that nothing depends on that of the texts.
        """
        tokenize = self._tokenizer.model.tokenize
        words = {tuple(t.value for t in tokenize(word)): counted[word] for word in sorted(counted)}
        # A byte that the vocabulary lacks is no piece of a new entry.
        alphabet = byte_alphabet()
        return {w: times for w, times in words.items() if all(c in alphabet for p in w for c in p)}

    def extend(self, words: Mapping[Word, int], entries: int | None, fewest: int) -> Extension:
        """Return the tokenizer with what is learned over words."""
        learner = MergeLearner(words, read_vocabulary(canonical_json(json.dumps(self._content))))
        learned = list(learner.learn(entries, fewest))
        text = self._append(learned)
        after = learner.segmented()
        return Extension(
            json=text,
            first=self._first,
            entries=tuple(entry.text for entry in learned),
            unreachable=_unreachable(text, learned, after),
            tokens_before=_count(words),
            tokens_after=_count(after),
            size_bytes=sum(times * sum(map(len, word)) for word, times in words.items()),
        )

    def append_special(self, spellings: Sequence[str]) -> Extension:
        """Return the tokenizer with special tokens behind its entries.

        Raises:
            InputError: it has one of them.
        """
        numbers = {text: self._first + n for n, text in enumerate(spellings)}
        known = read_vocabulary(canonical_json(json.dumps(self._content)))
        if taken := next((text for text in spellings if text in known), None):
            raise InputError(
                "run file",
                "extend_tokenizer.ids",
                f"the run's tokenizer has a token {taken} already, of another meaning",
                "land the corpus under another name, which is in the spelling of its entries",
                code="token-is-taken",
            )
        kind = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        special = [
            {"id": number, "content": text, **kind, "special": True}
            for text, number in numbers.items()
        ]
        text = self._with_entries(numbers, merges=[], special=special)
        return Extension(text, self._first, tuple(spellings), (), 0, 0, 0)

    def _append(self, learned: Sequence[LearnedEntry]) -> str:
        """Return the tokenizer.json with learned entries."""
        numbers = {entry.text: self._first + n for n, entry in enumerate(learned)}
        merges = [list(merge) for entry in learned for merge in entry.merges]
        return self._with_entries(numbers, merges, special=[])

    def _with_entries(
        self,
        numbers: Mapping[str, int],
        merges: Sequence[Sequence[str]],
        special: Sequence[Mapping[str, Any]],
    ) -> str:
        """Return the tokenizer.json with entries, the merges to them, and their special tokens."""
        content = parse_json(json.dumps(self._content, ensure_ascii=False))
        model = content["model"]
        # `tokenizers` numbers an added token by the size of the model where that has no such text,
        # so that every one would move.
        model["vocab"] |= {token["content"]: token["id"] for token in content["added_tokens"]}
        model["vocab"] |= numbers
        model["merges"] += merges
        content["added_tokens"] += special
        return canonical_json(json.dumps(content, ensure_ascii=False))


def _kinds(part: Any) -> set[str]:
    """Return the types of a step of a tokenizer.json and of the steps in it."""
    if part is None:
        return set()
    return {part["type"]}.union(*map(_kinds, part.get("pretokenizers", ())))


def _count(words: Mapping[Word, int]) -> int:
    return sum(times * len(word) for word, times in words.items())


def _unreachable(
    tokenizer_json: str, learned: Sequence[LearnedEntry], words: Mapping[Word, int]
) -> tuple[str, ...]:
    from tokenizers import Tokenizer

    model = Tokenizer.from_str(tokenizer_json).model
    used = {piece for word in words for piece in word}
    return tuple(
        entry.text
        for entry in learned
        if entry.text not in used and len(model.tokenize(entry.text)) > 1
    )
