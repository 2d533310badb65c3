"""A user's own functions, for the step `call`."""

from __future__ import annotations

from typing import Any


def drop_short(text: str, least: int = 10) -> str | None:
    return text if len(text) >= least else None


def shout(text: str) -> str:
    return text.upper()


def fail(text: str) -> str:
    raise ValueError(f"no luck with {text}")


def return_a_number(text: str) -> int:
    return len(text)


class FailingBlock:
    """A filter as datatrove's are, which fails on every document."""

    def __init__(self, word: str) -> None:
        self._word = word

    def filter(self, document: Any) -> bool:
        raise ValueError(f"no {self._word} with {document.text}")
