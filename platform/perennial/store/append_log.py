"""An append-only log in a store: a numbered object for every entry; creating one is the lock."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from perennial.store.base import Store

_ENTRY = re.compile(r"(\d{12})\.json")


@dataclass(frozen=True)
class Log:
    """The entries `<folder>/000000000000.json`, `<folder>/000000000001.json`, ... of a store.

    Reading the end of a log costs a request for every entry read and one more, however long the log
    is; nothing is listed.
    """

    store: Store
    folder: str

    def key(self, number: int) -> str:
        """Return the key of an entry."""
        return f"{self.folder}/{number:012d}.json"

    def read(self, number: int) -> bytes | None:
        """Return an entry, or None when it is not written yet."""
        try:
            return self.store.read(self.key(number))
        except FileNotFoundError:
            return None

    def tail(self, first: int) -> Iterator[tuple[int, bytes]]:
        """Yield (number, entry) from `first` to the present end of the log."""
        while (data := self.read(first)) is not None:
            yield first, data
            first += 1

    def append(self, number: int, data: bytes) -> bool:
        """Write entry `number`; return False when another process wrote it first."""
        return self.store.create(self.key(number), data)

    def entries(self) -> dict[str, bytes]:
        """Return all entries by key, also behind gaps; lists the whole folder."""
        names = (info.key for info in self.store.list(self.folder))
        prefix = f"{self.folder}/"
        return {
            key: self.store.read(key) for key in names if _ENTRY.fullmatch(key.removeprefix(prefix))
        }
