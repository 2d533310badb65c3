"""The verbs that ask a store whether it is sound, and what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perennial.api.trace import TracedRows
    from perennial.audit.repair import Repair
    from perennial.audit.verify import Progress, Verification
    from perennial.config import RunSpec
    from perennial.controller.context import Workspace
    from perennial.controller.observer import RunObserver


class StoredRun:
    """A run by what its store holds; see `Run`."""

    def __init__(
        self,
        spec: RunSpec,
        where: str,
        observers: Sequence[RunObserver] = (),
        *,
        from_store: bool = False,
    ) -> None:
        self.spec = spec
        self.where = where
        self._observers = tuple(observers)
        self._from_store = from_store

    def __repr__(self) -> str:
        return f"<perennial.Run {self.spec.name!r} in {self.spec.store}>"

    def verify(self, progress: Progress | None = None) -> Verification:
        """Prove from the store alone that the run is what its ledger records. Reads only.

        Args:
            progress: called with a file's key, the bytes that were read, and all bytes.

        Returns:
            What was read, and every fault that was found; none when everything holds.
        """
        from perennial.audit.verify import verify
        from perennial.store import open_store

        return verify(open_store(self.spec.store), progress)

    def repair(self, copy: str | None = None) -> Repair:
        """Mend the store: take from a copy what is lost, set aside what belongs to no run.

        Args:
            copy: URL of a copy of the store, as far as there is one; None: mend without.

        Returns:
            What was done, and what `verify` still finds.

        Raises:
            Busy: a process trains or tokenises, and lives.
        """
        from perennial.api import data

        return data.repair(self.spec.store, copy)

    def plan_repair(self, copy: str | None = None) -> Repair:
        """Return what `repair` would do first; arguments and errors are its."""
        from perennial.api import data

        return data.repair(self.spec.store, copy, acts=False)

    def trace(self, corpus: str, rows: Sequence[int]) -> TracedRows:
        """Return the documents that rows of a corpus hold. Reads only.

        Args:
            corpus: its name.
            rows: numbers of its rows, from 0.

        Raises:
            InputError: there is no such corpus or row, or its documents were not kept.
            Altered: the file that has them is missing or was altered.
        """
        from perennial.api.trace import trace_rows

        return trace_rows(self._reading(), corpus, rows)

    def trace_step(self, step: int, release: str | None = None) -> TracedRows:
        """Return the documents of the batch that led to a step of the trunk. Reads only.

        Args:
            step: the trunk's, or of the anneal of a release.
            release: its name; None for the trunk.

        Raises:
            InputError: there is no such step or release, or the documents of a corpus were not
                kept.
            Altered: the file that has them is missing or was altered.
        """
        from perennial.api.trace import trace_step

        return trace_step(self._reading(), step, release)

    def _reading(self) -> Workspace:
        from perennial.controller.context import Workspace

        return Workspace(self.spec, self.where, self._observers)
