"""A step: the menus of a site's pages are left out."""

from __future__ import annotations

from typing import Literal

from perennial.steps import RawDocument, StepConfig
from perennial.steps.base import Apply, Dropped


class StripMenusConfig(StepConfig):
    """Leave out lines that hold several links in a row."""

    kind: Literal["strip-menus"] = "strip-menus"
    """name of the step"""
    separator: str = " | "
    """what stands between two links"""

    def build(self) -> Apply:
        """Return the step as a function."""

        def strip(document: RawDocument) -> str | Dropped:
            lines = document.text.splitlines(keepends=True)
            kept = [line for line in lines if self.separator not in line]
            return "".join(kept) if kept else Dropped("only-menus", f"{len(lines)} lines")

        return strip
