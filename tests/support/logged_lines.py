"""An observer that keeps what the controller logs."""

from __future__ import annotations

from perennial.controller.observer import RunObserver


class LoggedLines(RunObserver):
    """Keeps the lines that the controller logs."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)
