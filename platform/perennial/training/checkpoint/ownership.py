"""Whether whoever started a job is still in charge of it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from perennial.store import Log, Store


@dataclass(frozen=True)
class Fence:
    """Falls when a claim of a kind is written into the run's log at entry `first` or later.

    kind: of the log's entries that are claims.
    name: what they claim; "" for a claim of the whole run.
    """

    first: int
    kind: str
    name: str = ""

    def stands(self, store: Store) -> bool:
        """Ask the log: one request, and one more for each entry since `first`."""
        told = (json.loads(data) for _, data in Log(store, "ledger").tail(self.first))
        return not any(
            entry["kind"] == self.kind and entry.get("name", "") == self.name for entry in told
        )
