"""A user's own functions, for the step `call`."""

from __future__ import annotations

import sys
from typing import Any


def drop_short(text: str, least: int = 10) -> str | None:
    return text if len(text) >= least else None


def shout(text: str) -> str:
    return text.upper()


def fail(text: str) -> str:
    raise ValueError(f"no luck with {text}")


def leave(text: str) -> str:
    sys.exit(3)


class WordlessError(Exception):
    """An error that fails to say what it is about."""

    def __str__(self) -> str:
        raise ValueError("no words")


def fail_without_words(text: str) -> str:
    raise WordlessError


def return_half_a_character(text: str) -> str:
    return text + "\ud800"


def return_a_number(text: str) -> int:
    return len(text)


def drop_by_title(text: str, fields: dict[str, str]) -> str | None:
    return None if fields["meta.title"] == "bad" else text


class TitleFilter:
    """What a block of datatrove is, as far as a filter is concerned."""

    def filter(self, document: Any) -> bool:
        return bool(document.metadata["meta.title"] != "bad")


class FailingBlock:
    """A filter as datatrove's are, which fails on every document."""

    def __init__(self, word: str) -> None:
        self._word = word

    def filter(self, document: Any) -> bool:
        raise ValueError(f"no {self._word} with {document.text}")
