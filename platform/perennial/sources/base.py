"""What a fetcher works with and gives."""

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
    """One new file on this machine's disk; whoever gets it removes it.

    origin, version: where it came from, and what tells its content from an older one there.
    """

    local: Path
    name: str
    origin: str
    version: str


@dataclass
class Pull:
    """One pull under way.

    match: file names to take.
    seen: version by origin of every file that was pulled before.
    folder: an empty folder on this machine's disk.
    watermark: the last pull's when it begins, this one's when it ends.
    passed_over: files that are of no kind that a corpus may hold, or that were listed in vain.
    """

    match: str
    seen: Mapping[str, str]
    folder: Path
    watermark: str
    passed_over: int = 0

    def wants(self, name: str) -> bool:
        """Whether a file of this name is to be pulled; counts what is of no known kind."""
        base = name.rpartition("/")[2]
        if not base or base.startswith(("_", ".")) or not fnmatchcase(base, self.match):
            return False
        if find_kind(base) is None:
            self.passed_over += 1
            return False
        return True


def plain_name(pull: int, index: int, name: str) -> str:
    """The file's name in a corpus: in the order of pulling, and safe in any store."""
    base = _ODD.sub("-", name.rpartition("/")[2])[-_LONGEST:]
    return f"{pull:06d}-{index:06d}-{base}"
