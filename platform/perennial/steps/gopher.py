"""Heuristics of MassiveText (Rae et al. 2021, arXiv 2112.11446, A.1.1), for scripts with spaces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from perennial.fields import Share
from perennial.steps.base import STEPS, Apply, Dropped, StepConfig

Number = Annotated[int, Field(ge=0)]
Words = Annotated[int, Field(ge=1)]

_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_BULLETS = ("•", "‣", "◦", "▪", "●", "*", "-")
_ELLIPSES = ("...", "…")
_PARAGRAPH = re.compile(r"\n{2,}")


@STEPS.register("gopher-quality")
class GopherQualityConfig(StepConfig):
    """Drop documents that do not look like prose (arXiv 2112.11446, A.1.1).

    The defaults are the paper's. For another language than English, give its `stop_words`.
    """

    version: ClassVar[int] = 2

    kind: Literal["gopher-quality"] = "gopher-quality"
    """name of the step"""
    min_words: Number = 50
    """fewest words"""
    max_words: Number = 100_000
    """most words"""
    min_mean_word_length: float = 3.0
    """shortest mean length of a word, in characters"""
    max_mean_word_length: float = 10.0
    """longest mean length of a word, in characters"""
    max_symbol_ratio: Share = 0.1
    """most hash signs for a word, and most ellipses for a word"""
    max_bullet_lines: Share = 0.9
    """largest share of lines that begin with a bullet"""
    max_ellipsis_lines: Share = 0.3
    """largest share of lines that end in an ellipsis"""
    min_alphabetic_words: Share = 0.8
    """smallest share of words with a letter in them"""
    min_stop_words: Number = 2
    """fewest different stop words; 0 looks for none"""
    stop_words: tuple[str, ...] = _STOP_WORDS
    """the stop words, each a word; case is ignored"""

    @model_validator(mode="after")
    def _keeps_something(self) -> GopherQualityConfig:
        for name in ("words", "mean_word_length"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if least > most:
                raise ValueError(
                    f"min_{name}, {least}, is above max_{name}, {most}: nothing is kept; "
                    "lower one, or raise the other"
                )
        phrases = [word for word in self.stop_words if word.split() != [word]]
        if phrases:
            raise ValueError(
                f"{phrases[0]!r} of stop_words is no word, and would be found nowhere; "
                "give words without spaces"
            )
        if len(self._stop_set) < self.min_stop_words:
            raise ValueError(
                f"min_stop_words, {self.min_stop_words}, is more than there are stop_words, "
                f"{len(self._stop_set)}: nothing is kept; give more words, or lower it"
            )
        return self

    @cached_property
    def _stop_set(self) -> frozenset[str]:
        return frozenset(map(str.lower, self.stop_words))

    def build(self) -> Apply:
        """Return the step as a function."""
        return lambda document: self._judge(document.text) or document.text

    def _judge(self, text: str) -> Dropped | None:
        words = text.split()
        if len(words) < self.min_words:
            return Dropped("too-few-words", f"{len(words)}")
        if len(words) > self.max_words:
            return Dropped("too-many-words", f"{len(words)}")
        mean = sum(map(len, words)) / max(1, len(words))
        if not self.min_mean_word_length <= mean <= self.max_mean_word_length:
            return Dropped("word-length", f"{mean:.2f} characters in the mean")
        ellipses = text.count("...") + text.count("…")
        for symbol, count in (("#", text.count("#")), ("...", ellipses)):
            if count > self.max_symbol_ratio * len(words):
                return Dropped("symbols", f"{count} {symbol} in {len(words)} words")
        return self._judge_lines(text) or self._judge_words(words)

    def _judge_lines(self, text: str) -> Dropped | None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        bullets = sum(line.startswith(_BULLETS) for line in lines)
        if bullets > self.max_bullet_lines * len(lines):
            return Dropped("bullets", f"{bullets} of {len(lines)} lines")
        cut = sum(line.endswith(_ELLIPSES) for line in lines)
        if cut > self.max_ellipsis_lines * len(lines):
            return Dropped("ellipses", f"{cut} of {len(lines)} lines")
        return None

    def _judge_words(self, words: Sequence[str]) -> Dropped | None:
        alphabetic = sum(any(map(str.isalpha, word)) for word in words)
        if alphabetic < self.min_alphabetic_words * len(words):
            return Dropped("too-few-alphabetic-words", f"{alphabetic} of {len(words)}")
        present = {word.lower() for word in words} & self._stop_set
        if len(present) < self.min_stop_words:
            return Dropped("too-few-stop-words", f"{len(present)}: {' '.join(sorted(present))}")
        return None


@STEPS.register("gopher-repetition")
class GopherRepetitionConfig(StepConfig):
    """Drop documents that repeat themselves (arXiv 2112.11446, table A1).

    The defaults are the paper's. A repeated run of words counts from its second occurrence on, and
    no character counts twice.
    """

    kind: Literal["gopher-repetition"] = "gopher-repetition"
    """name of the step"""
    max_duplicate_lines: Share = 0.3
    """largest share of lines that occurred before"""
    max_duplicate_paragraphs: Share = 0.3
    """largest share of paragraphs that occurred before"""
    max_duplicate_line_characters: Share = 0.2
    """largest share of characters in lines that occurred before"""
    max_duplicate_paragraph_characters: Share = 0.2
    """largest share of characters in paragraphs that occurred before"""
    max_top: dict[Words, Share] = Field(default_factory=lambda: {2: 0.2, 3: 0.18, 4: 0.16})
    """by number of words, the largest share of characters in the most frequent run of so many"""
    max_duplicate: dict[Words, Share] = Field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}
    )
    """by number of words, the largest share of characters in repeated runs of so many"""

    def build(self) -> Apply:
        """Return the step as a function."""
        return lambda document: self._judge(document.text) or document.text

    def _judge(self, text: str) -> Dropped | None:
        return (
            self._judge_parts(text, "lines")
            or self._judge_parts(text, "paragraphs")
            or self._judge_runs(text)
        )

    def _judge_parts(self, text: str, what: Literal["lines", "paragraphs"]) -> Dropped | None:
        is_lines = what == "lines"
        parts = text.strip().split("\n") if is_lines else _PARAGRAPH.split(text.strip())
        parts = [part for part in map(str.strip, parts) if part]
        repeats, characters = _count_repeats(parts)
        share = self.max_duplicate_lines if is_lines else self.max_duplicate_paragraphs
        if repeats > share * len(parts):
            return Dropped(f"duplicate-{what}", f"{repeats} of {len(parts)}")
        share = (
            self.max_duplicate_line_characters
            if is_lines
            else self.max_duplicate_paragraph_characters
        )
        if characters > share * len(text):
            return Dropped(f"duplicate-{what}", f"{characters} of {len(text)} characters")
        return None

    def _judge_runs(self, text: str) -> Dropped | None:
        words = text.split()
        lengths, runs = list(map(len, words)), _Runs(words)
        for size, share in self.max_top.items():
            if size > len(words):
                continue
            runs.choose(size)
            characters, run = _measure_top_run(words, runs)
            if characters > share * len(text):
                detail = f"{characters} of {len(text)} characters: {run}"
                return Dropped(f"top-{size}-words", detail)
        for size, share in self.max_duplicate.items():
            if size > len(words):
                continue
            runs.choose(size)
            characters = _measure_duplicate_runs(lengths, runs)
            if characters > share * len(text):
                detail = f"{characters} of {len(text)} characters"
                return Dropped(f"duplicate-{size}-words", detail)
        return None


def _count_repeats(parts: Sequence[str]) -> tuple[int, int]:
    """Return how many parts occurred before, and their characters."""
    seen: set[str] = set()
    repeats = characters = 0
    for part in parts:
        if part in seen:
            repeats, characters = repeats + 1, characters + len(part)
        seen.add(part)
    return repeats, characters


class _Runs:
    """Runs of a text's words, by number: equal runs have equal ones.

    A run itself is not made: those of ten words would take more than a hundred bytes a word.

    Attributes:
        size: words in a run.
        numbers: of the runs, in their order `(runs,)`; below the number of runs.
    """

    def __init__(self, words: Sequence[str]) -> None:
        distinct = {word: number for number, word in enumerate(dict.fromkeys(words))}
        self._words = np.fromiter(map(distinct.__getitem__, words), np.int64, len(words))
        self._factor = len(distinct) + 1
        self.size, self.numbers = 1, self._words

    def choose(self, size: int) -> None:
        """Go on to the runs of so many words."""
        if size < self.size:
            self.size, self.numbers = 1, self._words
        while self.size < size:
            longer = self.numbers[:-1] * self._factor + self._words[self.size :]
            self.numbers, self.size = np.unique(longer, return_inverse=True)[1], self.size + 1


def _measure_top_run(words: Sequence[str], runs: _Runs) -> tuple[int, str]:
    """Return the characters in the most frequent run of words, and the run."""
    if not len(runs.numbers):
        return 0, ""
    counts = np.bincount(runs.numbers)
    count = int(counts.max())
    if count == 1:
        return 0, ""
    _, first = np.unique(runs.numbers, return_index=True)
    most = (words[i : i + runs.size] for i in first[counts == count].tolist())
    # Of equally frequent ones the longest, so that the result depends on the text alone.
    text = " ".join(max(most, key=lambda run: (sum(map(len, run)), run)))
    return count * len(text), text


def _measure_duplicate_runs(lengths: Sequence[int], runs: _Runs) -> int:
    """Return the characters of runs of words that occurred before, without overlaps.

    Args:
        lengths: characters of the words.
        runs: their runs.
    """
    numbers, size = runs.numbers.tolist(), runs.size
    seen = bytearray(len(numbers))
    characters = place = 0
    while place < len(numbers):
        if seen[numbers[place]]:
            characters += sum(lengths[place : place + size])
            place += size
        else:
            seen[numbers[place]] = 1
            place += 1
    return characters
