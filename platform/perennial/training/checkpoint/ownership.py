"""Ownership of a job: the controller that started it may commit until another claims it."""

from __future__ import annotations

from dataclasses import dataclass

from perennial.store import Log, Store
from perennial.store.stored_json import parse_json


@dataclass(frozen=True)
class Fence:
    """A job's owner, until a claim is written into the run's log at entry `first` or later.

    kind: of the log's entries that are claims.
    name: what they claim; "" for a claim of the whole run.
    sha256: digest of the entry before `first`, which is the owner's own claim or a later one.
    """

    first: int
    kind: str
    name: str = ""
    sha256: str = ""

    def stands(self, store: Store) -> bool:
        """Return whether no claim was written; takes a request, and one per entry since `first`."""
        entries = (parse_json(data) for _, data in Log(store, "ledger").tail(self.first))
        return not any(
            entry["kind"] == self.kind and entry.get("name", "") == self.name for entry in entries
        )
