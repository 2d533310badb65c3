"""The driver's progress actor, played: it notes what the workers tell it."""

from __future__ import annotations

import dataclasses
from typing import Any


class PlayedDriver:
    """Takes every call at once. calls: method and arguments of each, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return _Method(self.calls, name)


@dataclasses.dataclass
class _Method:
    calls: list[tuple[str, tuple[Any, ...]]]
    name: str

    def remote(self, *arguments: Any) -> bool:
        self.calls.append((self.name, arguments))
        return False
