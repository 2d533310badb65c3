"""The domains of a corpus whose domains are its parts: which there are, and how large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.corpora.formats.base import Record

MOST_PARTS = 256
_SHOWN = 3


class DomainSizes:
    """Counter of the domains of a piece's documents, and of those of each run file.

    Attributes:
        sizes: bytes of text by domain.
        runs: sorted domains of each run file that was begun.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self.sizes: Counter[str] = Counter()
        self.runs: list[tuple[str, ...]] = []
        self._current: set[str] = set()

    def add(self, record: Record) -> None:
        """Count a document. Raises InputError for one more domain than a corpus may have."""
        self.sizes[record.domain] += len(record.text)
        self._current.add(record.domain)
        check_parts(self._where, self.sizes)

    def next_run(self) -> tuple[str, ...]:
        """Return the domains since the last call, and keep them as those of the next run file."""
        self.runs.append(tuple(sorted(self._current)))
        self._current = set()
        return self.runs[-1]


def sum_sizes(where: str, pieces: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the bytes of text by domain of a corpus, from those of its pieces.

    Args:
        where: the corpus, for the message.
        pieces: bytes of text by domain.

    Raises:
        InputError: the corpus has more domains than it may have parts.
    """
    sizes: Counter[str] = Counter()
    for piece in pieces:
        sizes.update(piece)
    check_parts(where, sizes)
    return dict(sizes)


def check_parts(where: str, domains: Mapping[str, int]) -> None:
    """Raise InputError if a corpus has more domains than it may have parts.

    Args:
        where: the corpus, for the message.
        domains: bytes of text by domain.
    """
    if len(domains) <= MOST_PARTS:
        return
    shown = ", ".join(repr(name[:40]) for name in sorted(domains)[:_SHOWN])
    raise InputError(
        where,
        "corpora.parts",
        f"it has more than {MOST_PARTS} domains, such as {shown}; each would be a part",
        "name a field of fewer values as domain_field, or set parts: none",
        code="too-many-parts",
    )
