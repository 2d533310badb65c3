"""Heuristics for pages of the web: C4's and FineWeb's."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from perennial.fields import Share
from perennial.steps.base import STEPS, Apply, Dropped, RawDocument, StepConfig

# In escapes: the closing quotes, and the marks of Chinese and Japanese, Hindi and Arabic.
_MARKS = ".!?\u3002\uff01\uff1f\u0964\u061f"
_QUOTES = '"\u201d\u2019'
_ENDS = (*_MARKS, *_QUOTES, "\u2026")
# From the first mark of a run, and over all of it: a ruled line of dots is read once.
_SENTENCE = re.compile(rf"(?<![{_MARKS}])[{_MARKS}]++(?:\s|[{_QUOTES})\]]|$)")
_POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_CITATION = re.compile(r"\[(?:\d+|edit|citation needed)\]")


@STEPS.register("c4-quality")
class C4QualityConfig(StepConfig):
    """Keep the sentences of a page (Raffel et al. 2019, arXiv 1910.10683, section 2.2).

    Lines go that are short, do not end as a sentence does, or speak of JavaScript or of a site's
    policies; documents go that hold a curly bracket or filler text, or too few sentences after
    that. The paper's list of words that drop a page is none of this step.
    """

    kind: Literal["c4-quality"] = "c4-quality"
    """name of the step"""
    min_sentences: Annotated[int, Field(ge=0)] = 3
    """fewest sentences of a document"""
    min_words_per_line: Annotated[int, Field(ge=0)] = 5
    """fewest words of a line"""
    ends: bool = True
    """whether a line must end in punctuation that ends a sentence"""
    curly_brackets: bool = False
    """whether a document may hold curly brackets"""

    def build(self) -> Apply:
        """Return the step as a function."""
        return self._clean

    def _clean(self, document: RawDocument) -> str | Dropped:
        lowered = document.text.lower()
        if "lorem ipsum" in lowered:
            return Dropped("filler-text")
        if not self.curly_brackets and "{" in document.text:
            return Dropped("curly-bracket")
        lines = [_CITATION.sub("", line).strip() for line in document.text.splitlines()]
        text = "\n".join(line for line in lines if self._keeps(line))
        sentences = len(_SENTENCE.findall(text))
        if sentences < self.min_sentences:
            return Dropped("too-few-sentences", f"{sentences} of {len(lines)} lines are left")
        return text

    def _keeps(self, line: str) -> bool:
        lowered = line.lower()
        return (
            len(line.split()) >= self.min_words_per_line
            and (not self.ends or (line.endswith(_ENDS) and not line.endswith("...")))
            and "javascript" not in lowered
            and not any(policy in lowered for policy in _POLICIES)
        )


@STEPS.register("fineweb-quality")
class FineWebQualityConfig(StepConfig):
    """Drop pages that are lists, menus or tables (Penedo et al. 2024, arXiv 2406.17557, 3.6)."""

    kind: Literal["fineweb-quality"] = "fineweb-quality"
    """name of the step"""
    min_punctuated_lines: Share = 0.12
    """smallest share of lines that end in punctuation"""
    max_duplicate_line_characters: Share = 0.1
    """largest share of characters in lines that occurred before"""
    max_short_lines: Share = 0.67
    """largest share of lines below 30 characters"""

    def build(self) -> Apply:
        """Return the step as a function."""
        return lambda document: self._judge(document.text) or document.text

    def _judge(self, text: str) -> Dropped | None:
        lines = [line for line in map(str.strip, text.splitlines()) if line]
        ended = sum(line.endswith(_ENDS) for line in lines)
        if ended < self.min_punctuated_lines * len(lines):
            return Dropped("too-little-punctuation", f"{ended} of {len(lines)} lines end in any")
        short = sum(len(line) < 30 for line in lines)
        if short > self.max_short_lines * len(lines):
            return Dropped("short-lines", f"{short} of {len(lines)}")
        distinct = sum(map(len, dict.fromkeys(lines)))
        characters = sum(map(len, lines))
        if characters - distinct > self.max_duplicate_line_characters * characters:
            detail = f"{characters - distinct} of {characters} characters"
            return Dropped("duplicate-lines", detail)
        return None
