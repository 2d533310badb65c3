"""The verbs by which an operator moves a run's store, borrows from it, and frees its space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.api.stored_run import StoredRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perennial.controller.storage.collect import Freed
    from perennial.controller.storage.fork import Fork
    from perennial.controller.storage.move import Move
    from perennial.store.transfer import Copied


class KeptRun(StoredRun):
    """A run by what its operator may do with its store; see `Run`."""

    def move(self, place: str, progress: Copied | None = None) -> Move:
        """Copy the store to another place, check the copy, and let the old one refuse.

        Safe to repeat and to kill: the run is in its old place until the copy is whole.

        Args:
            place: folder or URL; empty, or begun by this command.
            progress: called with a key, the bytes that are the same in both, and all bytes.

        Raises:
            Busy: another process trains or tokenises, and lives.
            InputError: there is no run, it has moved elsewhere, or the place cannot be used.
        """
        from perennial.controller.context import Workspace
        from perennial.controller.storage.move import move

        work = Workspace(self.spec, self.where, self._observers, verb="move")
        try:
            return move(work, place, progress or (lambda _key, _bytes, _all: None))
        finally:
            work.close()

    def fork(self, at: str, new: StoredRun) -> Fork:
        """Begin another run at a checkpoint; it borrows what both have in common.

        This run may go on meanwhile. Safe to repeat and to kill.

        Args:
            at: `STAGE@STEP`, or `STAGE` for its end; also of a stage that left the trunk.
            new: the run that begins, opened by its run file, with a store of its own.

        Raises:
            Busy: another process has the whole store to itself.
            InputError: there is no such checkpoint, the new run file differs in what cannot be
                changed, or its store is not empty.
        """
        from perennial.controller.context import Workspace
        from perennial.controller.storage.fork import fork

        work = Workspace(self.spec, self.where, self._observers, verb="fork")
        try:
            return fork(work, at, new.spec, new.where)
        finally:
            work.close()

    def gc(self, kinds: Sequence[str] = ()) -> Freed:
        """Remove from the store what nothing needs: never what a restart or a release does.

        Safe to repeat and to kill.

        Args:
            kinds: branches, trials, evaluations, staged or left; none: all but left.

        Raises:
            Busy: another process trains or tokenises, and lives.
            InputError: there is no run, or no such kind.
        """
        from perennial.controller.context import Workspace
        from perennial.controller.storage.collect import collect

        work = Workspace(self.spec, self.where, self._observers, verb="gc")
        try:
            return collect(work, kinds)
        finally:
            work.close()

    def plan_gc(self, kinds: Sequence[str] = ()) -> Freed:
        """Return what `gc` would remove; arguments and errors are its."""
        from perennial.controller.storage.collect import plan_collect

        return plan_collect(self._reading(), kinds)

    def measure_bytes(self) -> dict[str, int]:
        """Return the bytes in the store by kind, the largest first. Lists the whole store."""
        from perennial.runs.storage.space import sum_by_kind
        from perennial.store import open_store

        return sum_by_kind(open_store(self.spec.store).list())

    def plan_fork(self, at: str, new: StoredRun) -> Fork:
        """Return what `fork` would do; arguments and errors are its."""
        from perennial.controller.storage.fork import plan_fork

        return plan_fork(self._reading(), at, new.spec, new.where)

    def plan_move(self, place: str) -> list[str]:
        """Return what `move` would do; arguments and errors are its."""
        from perennial.controller.storage.move import plan_move

        return plan_move(self._reading(), place)
