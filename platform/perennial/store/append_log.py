"""An append-only log in a store: a numbered object for every entry; creating one is the lock."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from perennial.errors import LogGap
from perennial.store.base import Store

_ENTRY = re.compile(r"(\d{12})\.json")


@dataclass(frozen=True)
class Log:
    """The entries `<folder>/000000000000.json`, `<folder>/000000000001.json`, ... of a store.

    Reading the end of a log costs a listing of what is behind the last entry that was read, and a
    request for every entry, however long the log is.
    """

    store: Store
    folder: str

    def key(self, number: int) -> str:
        """Return the key of an entry."""
        return f"{self.folder}/{number:012d}.json"

    def read(self, number: int) -> bytes | None:
        """Return an entry, or None where there is none."""
        try:
            return self.store.read(self.key(number))
        except FileNotFoundError:
            return None

    def numbers(self, first: int = 0) -> list[int]:
        """Return the numbers from `first` on that have an entry, ascending."""
        after = self.key(first - 1) if first else ""
        names = (
            info.key.removeprefix(f"{self.folder}/") for info in self.store.list(self.folder, after)
        )
        return [int(match[1]) for name in names if (match := _ENTRY.fullmatch(name))]

    def tail(self, first: int) -> Iterator[tuple[int, bytes]]:
        """Yield (number, entry) from `first` to the present end of the log.

        Raises:
            LogGap: an entry is missing, and a later one is there. An entry that is absent is not
                one that was not written yet.
        """
        numbers = self.numbers(first)
        for number in range(first, numbers[-1] + 1 if numbers else first):
            # Read also where the listing does not have it: it may be older than the entry.
            data = self.read(number)
            if data is None:
                raise LogGap(self.key(number), self.key(numbers[-1]))
            yield number, data

    def append(self, number: int, data: bytes) -> bool:
        """Write entry `number`; return False when another process wrote it first."""
        return self.store.create(self.key(number), data)

    def entries(self) -> dict[str, bytes]:
        """Return all entries by key, also behind gaps; lists the whole folder."""
        return {key: self.store.read(key) for key in map(self.key, self.numbers())}
