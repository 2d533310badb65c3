"""The driver's progress actor, played: it notes what the workers tell it."""

from __future__ import annotations

import dataclasses
from typing import Any


class PlayedDriver:
    """Takes and answers every call at once. calls: method and arguments of each, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return _Method(self, name)

    def answer(self, name: str) -> Any:
        """Return the answer to a call of method `name`."""
        return False


@dataclasses.dataclass
class _Method:
    driver: PlayedDriver
    name: str

    def remote(self, *arguments: Any) -> Any:
        self.driver.calls.append((self.name, arguments))
        return self.driver.answer(self.name)
