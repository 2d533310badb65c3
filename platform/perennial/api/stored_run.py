"""The verbs that ask a store what is in it, as tables and figures, and whether it is sound."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from perennial.api.events import Callback, Callbacks, EventName
    from perennial.api.frames import Frame
    from perennial.api.status import RunStatus
    from perennial.api.trace import TracedRows
    from perennial.api.trace_document import TracedDocument, TracedRelease
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
        self._callbacks: Callbacks | None = None
        self._from_store = from_store

    def __repr__(self) -> str:
        return f"<perennial.Run {self.spec.name!r} in {self.spec.store}>"

    def status(self, last: int | None = None) -> Frame:
        """Return the run's state: a row a stage, then a row for each corpus that has none.

        Columns are `stage`, its new `corpora`, their `state` with the `reason`, `tokens` of the
        whole stage, `replay` from 0 to 1, and in nats per token `adaptation`, the loss on its own
        corpora, and `forgetting`, the mean rise on earlier ones: with `forgetting_stderr`, over
        `forgetting_measured` of `forgetting_of` corpora. `read_status` has the rest.

        Args:
            last: number of stages that are read, counted from the end of the trunk; default all.
        """
        from perennial.api.frames import status_frame

        return status_frame(self.read_status(last))

    def read_status(self, last: int | None = None) -> RunStatus:
        """Return all that `perennial status` shows, as an object. Reads only.

        Args:
            last: number of stages that are shown and read, counted from the end of the trunk;
                default all of them.
        """
        from perennial.api.status import read_status

        return read_status(self._reading(), last)

    def matrix(self) -> Frame:
        """Return held-out nats per token: a row a model, a column a corpus.

        Models are those that the trunk started from, its stages and its releases, in this order;
        their names are the index of a DataFrame, and the first column of an Arrow table. What was
        not measured is null.
        """
        from perennial.api.frames import matrix_frame
        from perennial.runs.summary import matrix

        return matrix_frame(matrix(self._reading().ledger.read()))

    def losses(self) -> Frame:
        """Return every held-out loss with its errors: a row a model, corpus and domain.

        The column `kind` is origin, stage or release; `domain` is null in the row of a whole
        corpus. `stderr_of_change` is that of the change since the corpus's own stage.
        """
        from perennial.api.frames import losses_frame
        from perennial.runs.summary import matrix

        return losses_frame(matrix(self._reading().ledger.read()))

    def metrics(self, name: str | None = None) -> Frame:
        """Return the metrics of every step up to the last checkpoint: a row a step.

        Columns are `stage`, `step` and `tokens` of the trunk, and those that its workers logged:
        `loss`, `eta`, `phase`, `tokens_per_second`, `seconds_...` by part of the step, and others.

        Args:
            name: of a stage, or of a release for its anneal; None for the whole trunk.

        Raises:
            InputError: there is no stage or release of this name.
        """
        from perennial.api.frames import metrics_frame

        return metrics_frame(self._reading(), name)

    def tokens(self) -> Frame:
        """Return the tokens that each stage takes: a row a stage, corpus and part.

        The column `kind` is new or replayed; `part` is null where a corpus has no parts.
        """
        from perennial.api.frames import tokens_frame

        state = self._reading().ledger.read()
        return tokens_frame(state, self.spec.corpora.sequence_length)

    def scores(self) -> Frame:
        """Return the scores of lm-eval tasks: a row a model, task and metric.

        A task that was not run has a `reason` in place of a `value`.
        """
        from perennial.api.frames import scores_frame

        return scores_frame(self._reading().ledger.read())

    def lineage(self) -> Frame:
        """Return where every model comes from: a row a stored model, stage and release.

        The column `parent` names the model that it was trained from, null for random weights;
        `folder` is the key of its files in the store. Stages that left the trunk are in it.
        """
        from perennial.api.frames import lineage_frame

        return lineage_frame(self._reading())

    def plot(self, figure: str = "matrix") -> Axes:
        """Draw a figure of the report, and return its matplotlib axes.

        The figure is pyplot's current one, so that a notebook shows it; `axes.figure.savefig`
        writes it into a file.

        Args:
            figure: `matrix`, `losses`, `transfer`, `learning-rate`, `train-loss`, `tokens`, `time`,
                or `metric-NAME` for a metric that the report draws.

        Raises:
            InputError: there is no such figure of this run.
        """
        from perennial.api.pictures import plot_run

        return plot_run(self._reading(), figure)

    def on(self, event: EventName, callback: Callback) -> Callback:
        """Call a function when something happens in a verb of this object.

        It is called in the process and thread that runs the verb, after the event is in the
        ledger. One that raises is logged with its traceback; the run goes on.

        Args:
            event: `stage_started`, `evaluated`, `gated` or `released`.
            callback: gets a `RunEvent`.

        Returns:
            The function.

        Raises:
            InputError: there is no such event.
        """
        if self._callbacks is None:
            from perennial.api.events import Callbacks

            self._callbacks = Callbacks()
            self._observers = (*self._observers, self._callbacks)
        self._callbacks.add(event, callback)
        return callback

    def verify(self, progress: Progress | None = None) -> Verification:
        """Prove from the store alone that the run is what its ledger records. Reads only.

        Args:
            progress: called with a file's key, the bytes that were read, and all bytes.

        Returns:
            What was read, and every fault that was found; none when everything holds.
        """
        from perennial.audit.verify import verify
        from perennial.store import open_run_store

        return verify(open_run_store(self.spec.store), progress)

    def repair(self, copy: str | None = None, *, retrain: bool = False) -> Repair:
        """Mend the store: take from a copy what is lost, set aside what belongs to no run.

        Args:
            copy: URL of a copy of the store, as far as there is one; None: mend without.
            retrain: train the steps of damaged checkpoints again, and put in place what is proved
                by digest to be the same.

        Returns:
            What was done, and what `verify` still finds.

        Raises:
            Busy: a process trains or tokenises, and lives.
        """
        return self._repair(copy, retrain, acts=True)

    def plan_repair(self, copy: str | None = None, *, retrain: bool = False) -> Repair:
        """Return what `repair` would do first; arguments and errors are its."""
        return self._repair(copy, retrain, acts=False)

    def _repair(self, copy: str | None, retrain: bool, *, acts: bool) -> Repair:
        from perennial.api import data

        if not retrain:
            return data.repair(self.spec.store, copy, acts=acts)
        work = self._reading()
        try:
            retraining = data.retraining_of(work)
            return data.repair(self.spec.store, copy, acts=acts, retraining=retraining)
        finally:
            work.workers.let_go()
            work.close()

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

    def ui_command(self, *, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
        """Return the command that starts MLflow's UI at an address, on the run's tracking store."""
        from perennial.telemetry.mlflow_observer import tracking_uri
        from perennial.tracking import ui_command

        return ui_command(tracking_uri(self._reading()), host=host, port=port)

    def prepare_tracking(self) -> None:
        """Make or migrate MLflow's database, where it is an SQLite file; `ui_command` needs it."""
        from perennial.telemetry.mlflow_observer import prepare_tracking

        prepare_tracking(self._reading())

    def tracked_page(self) -> str:
        """Return where the run is within MLflow's pages, "" before MLflow has it.

        `prepare_tracking` comes first.
        """
        from perennial.telemetry.mlflow_observer import tracked_page

        return tracked_page(self._reading())

    def trace_document(self, digest: str) -> TracedDocument:
        """Return where a document is, and every stage, checkpoint and release that saw it.

        Args:
            digest: at least 16 hexadecimal digits of the sha256 of its text.

        Raises:
            InputError: it is no digest, or no corpus has such a document.
            Altered: a file of a corpus is missing or was altered.
        """
        from perennial.api.trace_document import trace_document

        return trace_document(self._reading(), digest)

    def trace_text(self, path: str | os.PathLike[str]) -> TracedDocument:
        """Return the same of the document whose text a file holds; see `trace_document`."""
        from perennial.api.trace_document import trace_text

        return trace_text(self._reading(), Path(path))

    def trace_release(self, release: str) -> TracedRelease:
        """Return the stages, corpora and tokens that a release was trained on. Reads only.

        Args:
            release: its name.

        Raises:
            InputError: there is no such release.
        """
        from perennial.api.trace_document import trace_release

        return trace_release(self._reading(), release)

    def _reading(self) -> Workspace:
        from perennial.controller.context import Workspace

        return Workspace(self.spec, self.where, self._observers)
