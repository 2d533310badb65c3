"""The last step of each metric that a run's files have, kept beside them.

A service that cannot be asked, as its files are only written here, would get the steps of a run
that goes on from a checkpoint twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from perennial.store import Store
    from perennial.tracking.outbox import MetricPoint


class LoggedSteps:
    """The last steps of one run, in an object that is replaced as a whole.

    Args:
        store: where the run's files are.
        key: of the object.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self.steps: dict[str, int] = {}
        self.complete = False
        with suppress(FileNotFoundError):
            self.merge(store.read(key))

    def merge(self, document: bytes | str | None) -> None:
        """Take over what `to_json` returned; of what is none of it, nothing.

        Values may then be written twice, and none is lost.
        """
        try:
            known = parse_json(document or b"{}")
            steps = {str(name): int(step) for name, step in known.get("steps", {}).items()}
        except (ValueError, TypeError, AttributeError):
            return
        self.steps |= {name: max(step, self.steps.get(name, step)) for name, step in steps.items()}
        self.complete = self.complete or known.get("complete") is True

    def to_json(self) -> str:
        """Return the steps, and whether the run has everything, as JSON."""
        return json.dumps({"steps": self.steps, "complete": self.complete})

    def add(self, points: Sequence[MetricPoint]) -> None:
        """Note values that were written."""
        for point in points:
            self.steps[point.name] = max(point.step, self.steps.get(point.name, point.step))
        self._write()

    def mark_complete(self) -> None:
        """Note that the run has everything that the store knows."""
        self.complete = True
        self._write()

    def _write(self) -> None:
        self._store.write(self._key, self.to_json().encode())
