"""The pull that every kind of source works on, and the files that it yields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from perennial.corpora import find_kind

_ODD = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST = 120


@dataclass(frozen=True)
class FetchedFile:
    """A new file on the local disk; its consumer removes it.

    Attributes:
        local: the file.
        name: its name at its origin.
        origin: where it came from.
        version: distinguishes its content from older content of the same origin; "" if unknown.
    """

    local: Path
    name: str
    origin: str
    version: str


@dataclass
class Pull:
    """State of one pull.

    Attributes:
        match: pattern of the file names to take.
        seen: version, by origin, of every file that was pulled before.
        folder: an empty folder on the local disk.
        watermark: that of the pull before; a source replaces it by that of this pull.
        passed_over: files of an unknown format, and files that were listed but are gone.
    """

    match: str
    seen: Mapping[str, str]
    folder: Path
    watermark: str
    passed_over: int = 0

    def wants(self, name: str) -> bool:
        """Return whether to pull a file of this name; count it if its format is unknown."""
        base = name.rpartition("/")[2]
        if not base or base.startswith(("_", ".")) or not fnmatchcase(base, self.match):
            return False
        if find_kind(base) is None:
            self.passed_over += 1
            return False
        return True


def make_file_name(pull: int, index: int, name: str) -> str:
    """Return a file's name in a corpus: unique, in the order of pulling, and safe in any store.

    Args:
        pull: number of the pull.
        index: number of the file in the pull.
        name: the file's name at its origin.
    """
    base = _ODD.sub("-", name.rpartition("/")[2])[-_LONGEST:]
    return f"{pull:06d}-{index:06d}-{base}"
