"""The verbs by which an operator changes what a run has done."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.api.kept_run import KeptRun

if TYPE_CHECKING:
    from perennial.audit.upgrade import StackComparison
    from perennial.controller.erasing.erase import Erasure
    from perennial.controller.promote import Promotion
    from perennial.controller.rewind import Rewinding


class OperatedRun(KeptRun):
    """A run by what its operator may do to its trunk and its releases; see `Run`."""

    def rewind(self, to: str, reason: str = "", *, take_over: bool = False) -> Rewinding:
        """Take the trunk back to a checkpoint; later stages leave it and stay readable.

        Args:
            to: `STAGE@STEP`, or `STAGE` for its end.
            reason: kept in the ledger.
            take_over: stop a controller that lives.

        Raises:
            Busy: a controller is in charge, and lives.
            InputError: there is no such checkpoint, or the trunk cannot go on from it.
        """
        from perennial.controller.context import Workspace
        from perennial.controller.rewind import rewind

        work = Workspace(self.spec, self.where, self._observers, verb="rewind", take_over=take_over)
        try:
            work.check_run()
            return rewind(work, to, reason)
        finally:
            work.close()

    def promote(self, release: str, alias: str, reason: str = "") -> Promotion:
        """Point an alias such as `production` to a release whose gates hold, and MLflow's too.

        Args:
            release: its name, or `previous` for the one to which the alias pointed before.
            alias: lower-case letters, digits, dash, underscore.
            reason: kept in the ledger.

        Raises:
            InputError: there is no such release, its gates do not hold, or the alias is none.
        """
        from perennial.api.workspace import checked_workspace
        from perennial.controller.promote import promote
        from perennial.telemetry.mlflow_observer import mlflow_of

        with checked_workspace(
            self.spec, self.where, self._observers, acts=False, verb="promote", take_over=False
        ) as work:
            done = promote(work, release, alias, reason)
            receipt = mlflow_of(work).deliver(work)
        return replace(done, missing=tuple(receipt.missing))

    def plan_promotion(self, release: str, alias: str) -> Promotion:
        """Return what `promote` would do; arguments and errors are its."""
        from perennial.controller.promote import plan_promotion

        return plan_promotion(self._reading(), release, alias)

    def erase(
        self,
        corpus: str,
        documents: str | os.PathLike[str] | None = None,
        reason: str = "",
        *,
        take_over: bool = False,
    ) -> Erasure:
        """Erase a corpus, or documents of it, and list what was trained on it.

        Rows keep their numbers and hold padding; later stages go on. Safe to repeat and to kill.

        Args:
            corpus: its name.
            documents: a file that names documents, one a line; None for the whole corpus.
            reason: kept in the ledger.
            take_over: stop a controller that lives.

        Raises:
            Busy: a controller is in charge or tokenises, and lives.
            InputError: there is no such corpus or document, or it cannot be erased now.
        """
        from perennial.api.pictures import write_report
        from perennial.api.workspace import checked_workspace
        from perennial.controller.erasing.erase import erase
        from perennial.report.publish import catch_up, renew_samples
        from perennial.telemetry.mlflow_observer import (
            mlflow_of,
            remove_samples,
            tracking_places,
        )

        with checked_workspace(
            self.spec, self.where, self._observers, acts=False, verb="erase", take_over=take_over
        ) as work:
            tracking_places(work)  # before anything is erased: samples there are, too
            done = erase(work, corpus, _as_path(documents), reason)
            if done.whole or done.held_out:
                remove_samples(work)
            mlflow = mlflow_of(work)
            catch_up(work, mlflow.tracker(work))
            renew_samples(work, mlflow.tracker(work))
            if work.state.losses:
                write_report(work, None)  # also in place of the page that MLflow has
            receipt = mlflow.deliver(work)
        return replace(done, missing=tuple(receipt.missing))

    def plan_erase(self, corpus: str, documents: str | os.PathLike[str] | None = None) -> Erasure:
        """Return what `erase` would do; arguments and errors are its."""
        from perennial.controller.erasing.erase import plan_erase

        return plan_erase(self._reading(), corpus, _as_path(documents))

    def upgrade(self) -> StackComparison:
        """Take the trunk's last steps once more under the software that is installed now.

        Compares losses and weights with those that were recorded; the difference is an event of
        the ledger, and nothing of the trunk changes. Safe to repeat and to kill.

        Raises:
            Busy: another process trains or tokenises, and lives.
            InputError: there is no checkpoint, or what it was trained from is gone.
            TrainingFailed: the installed software cannot take the steps.
        """
        from perennial.api import data

        work = self._reading()
        try:
            return data.upgrade(work)
        finally:
            work.workers.let_go()
            work.close()

    def plan_upgrade(self) -> list[str]:
        """Return the steps that `upgrade` would take, in words; errors are its."""
        from perennial.api import data

        return data.plan_upgrade(self._reading())

    def plan_rewind(self, to: str) -> Rewinding:
        """Return what `rewind` would do; arguments and errors are its."""
        from perennial.controller.rewind import plan_rewind

        return plan_rewind(self._reading(), to)


def _as_path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)
