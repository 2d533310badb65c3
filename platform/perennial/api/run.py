"""A run as an object: every verb is a method that returns data and prints nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from perennial.api.comparable_run import ComparableRun
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.api.results import (
        EvaluationSummary,
        IngestSummary,
        LandedFiles,
        ReleaseSummary,
        ReportPage,
        RunPlan,
        TrackingSummary,
        TrainingSummary,
        WatchedLook,
    )
    from perennial.config.search import TuningSpec
    from perennial.controller.context import Workspace
    from perennial.controller.decisions import Decision
    from perennial.controller.release import Format
    from perennial.controller.trunk_kit import TrunkKit
    from perennial.planning.plan import Hardware
    from perennial.runs.state import Corpus
    from perennial.search.layer_results import LayerSearchResult
    from perennial.search.layer_search import LayerSearchPlan
    from perennial.search.results import SearchResult
    from perennial.search.service import SearchPlan

PathLike = str | os.PathLike[str]


class Run(ComparableRun):
    """A run: its run file, and its store.

    Every method opens the run again, so that it sees what other processes wrote. Methods that
    train, ingest or measure start Ray where it is needed and do not stop it. Those named `plan_...`
    return what their verb would do, write nothing and start nothing.

    Attributes:
        spec: the resolved run file.
        where: the run file's path, or the store's URL, as given; errors name it.
    """

    def land(self, name: str, files: Sequence[PathLike], splits: Sequence[str] = ()) -> LandedFiles:
        """Copy files to the inbox as corpus `name`, the marker last. Safe to repeat.

        Args:
            name: of the corpus.
            files: files, folders, globs, `s3://` or `gs://` prefixes, `hf://datasets/OWNER/NAME`.
            splits: of files that have them: train, validation, test or all; default train.

        Raises:
            InputError: a file cannot become a corpus, or the inbox cannot be written.
        """
        from perennial.api import data

        return data.land(self._acting(), name, [os.fspath(file) for file in files], splits)

    def plan_land(
        self, name: str, files: Sequence[PathLike], splits: Sequence[str] = ()
    ) -> list[str]:
        """Return what `land` would do; arguments and errors are its."""
        from perennial.api import data

        return data.plan_land(self._acting(), name, [os.fspath(file) for file in files], splits)

    def advance(self, *, reschedule: bool = False, take_over: bool = False) -> TrainingSummary:
        """Train and evaluate every stage that is not done yet, in order. Safe to repeat and kill.

        Args:
            reschedule: go on under a schedule that is not the trunk's so far.
            take_over: stop a controller that lives, and go on in its place.

        Raises:
            Busy: another controller is in charge, and lives.
            InputError: the run file is wrong, nothing has landed, or all of it was refused.
            TrainingFailed: a stage failed for the last time.
            Terminated: on SIGTERM, after the workers stored a checkpoint.
        """
        from perennial.api import training

        with self._checked(verb="run", take_over=take_over) as work:
            return training.advance(work, reschedule=reschedule)

    def plan_advance(self) -> list[str]:
        """Return what `advance` would do first, and what waits behind it."""
        from perennial.api import training

        with self._checked() as work:
            return training.plan_advance(work)

    def watch(
        self,
        on_look: Callable[[WatchedLook], None] = lambda look: None,
        *,
        interval_seconds: float = 60.0,
        webhook_port: int | None = None,
        reschedule: bool = False,
        take_over: bool = False,
    ) -> NoReturn:
        """Pull the sources that are due and train each corpus that lands, until SIGTERM.

        While another controller is in charge it stands by, and goes on when that one ends.

        Args:
            on_look: called after each look at the inbox.
            interval_seconds: time between two looks.
            webhook_port: look at once whenever an S3 event is posted to this port; None: no port.
            reschedule: go on under a schedule that is not the trunk's so far.
            take_over: stop a controller that lives, and go on in its place.

        Raises:
            Terminated: on SIGTERM, after the workers stored a checkpoint.
        """
        from perennial.api import training

        with self._checked(verb="watch", take_over=take_over) as work:
            training.watch(
                work, on_look, interval_seconds, webhook_port=webhook_port, reschedule=reschedule
            )

    def watch_once(self, *, reschedule: bool = False, take_over: bool = False) -> TrainingSummary:
        """Pull the sources that are due and train what has landed, once.

        Args:
            reschedule: go on under a schedule that is not the trunk's so far.
            take_over: stop a controller that lives, and go on in its place.

        Raises:
            Busy: another controller is in charge, and lives.
        """
        from perennial.api import training

        with self._checked(verb="watch --once", take_over=take_over) as work:
            return training.watch_once(work, reschedule=reschedule)

    def ingest(self, *, due: bool = False, take_over: bool = False) -> IngestSummary:
        """Tokenise everything that has landed, train nothing. Safe to repeat and kill.

        A controller stays in charge, and may train meanwhile. Waits while another one tokenises.

        Args:
            due: first pull the sources that are due.
            take_over: stop a process that tokenises, and go on in its place.

        Raises:
            InputError: `due` is asked of a run without sources.
        """
        from perennial.api import data

        with self._checked(verb="ingest", take_over=take_over) as work:
            return data.ingest(work, due=due)

    def plan_ingest(self, *, due: bool = False) -> list[str]:
        """Return what `ingest` would do; arguments and errors are its."""
        from perennial.api import data

        with self._checked() as work:
            return data.plan_ingest(work, due=due)

    def hold(self, corpus: str, reason: str = "") -> Corpus:
        """Let a corpus wait; the others go on. `retry` lets it go on.

        Args:
            corpus: its name.
            reason: kept in the ledger.

        Raises:
            InputError: there is no such corpus, or its state does not allow the decision.
        """
        return self._decide("hold", corpus, reason)

    def retry(self, corpus: str, *, replay: float | None = None) -> Corpus:
        """Go on with a corpus that was held, failed or refused; train a gated one again.

        Args:
            corpus: its name.
            replay: share of replay of its next stage, 0 to 1; None: the run file's.

        Raises:
            InputError: there is no such corpus, or its state does not allow the decision.
        """
        return self._decide("retry", corpus, "", replay)

    def refuse(self, corpus: str, reason: str = "") -> Corpus:
        """Leave a corpus out; a stage that a gate stopped leaves the trunk with it.

        Arguments and errors are those of `hold`.
        """
        return self._decide("refuse", corpus, reason)

    def retire(self, corpus: str, reason: str = "") -> Corpus:
        """Replay a trained corpus no more; it stays in the lineage.

        Arguments and errors are those of `hold`.
        """
        return self._decide("retire", corpus, reason)

    def unretire(self, corpus: str, reason: str = "") -> Corpus:
        """Replay a retired corpus again.

        Arguments and errors are those of `hold`.
        """
        return self._decide("unretire", corpus, reason)

    def accept(self, corpus: str, reason: str = "") -> Corpus:
        """Accept a stage that a gate stopped, or one that waits to begin for approval.

        Arguments and errors are those of `hold`.
        """
        return self._decide("accept", corpus, reason)

    def plan_decision(
        self, decision: Decision, corpus: str, *, replay: float | None = None
    ) -> list[str]:
        """Return what a decision would do, after checking that the corpus's state allows it.

        Args:
            decision: the verb.
            corpus: its name.
            replay: as for `retry`.
        """
        from perennial.controller import decisions

        decisions.check(self._reading(), decision, corpus, replay)
        return [f"{decision} {corpus}"]

    def _decide(
        self, decision: Decision, corpus: str, reason: str, replay: float | None = None
    ) -> Corpus:
        from perennial.controller import decisions

        return decisions.decide(self._reading(), decision, corpus, reason, replay)

    def plan(self, hardware: Hardware | None = None, *, reschedule: bool = False) -> RunPlan:
        """Return steps, tokens by source, rates, memory and time before compute. Reads only.

        Args:
            hardware: the GPUs; None is an A100 at 40% of its peak with no check of its memory.
            reschedule: plan with a schedule that is not the trunk's so far.

        Raises:
            InputError: the run file describes what cannot work.
        """
        from perennial.api.results import RunPlan
        from perennial.planning.plan import Hardware, plan_run

        chosen = hardware or Hardware(peak_flops=312e12, mfu=0.4)
        return RunPlan(*plan_run(self._reading(), chosen, reschedule))

    def draw_rates(self, plan: RunPlan, picture: PathLike) -> None:
        """Draw the learning rate of a plan of this run into a PNG file.

        Args:
            plan: as `plan` returns it, with a stage; InputError for one without.
            picture: path of the file.
        """
        from perennial.api.pictures import draw_rates

        draw_rates(plan, Path(picture))

    def release(
        self,
        origin: str | None = None,
        tokens: str | None = None,
        to: str | None = None,
        copied_as: Format = "safetensors",
        mixture: str | None = None,
        average: str | None = None,
    ) -> ReleaseSummary:
        """Anneal a branch off the trunk and export it as a Hugging Face folder.

        Args:
            origin: `STAGE@STEP`, or `STAGE` for its end; None: the end of the last that passed.
            tokens: length of the anneal, such as `4M tokens`; None: the run file's.
            to: folder, bucket's url or `hf://OWNER/NAME` to copy it to, as `copied_as` says.
            mixture: of the anneal, such as `balanced` or `en=2,fr=1`; None: the run file's.
            average: `last:5`: the average of checkpoints in place of an anneal; None: an anneal.

        Raises:
            InputError: no such checkpoint, corpus or place, or a gate stopped the stage.
        """
        from perennial.api import training

        with self._checked() as work:
            return training.release(work, origin, tokens, to, copied_as, mixture, average)

    def make_trunk_kit(self, origin: str | None = None, to: str | None = None) -> TrunkKit:
        """Write a folder from which others continue the trunk, with the optimizer's state.

        Args:
            origin: as for `release`.
            to: folder, bucket's url or `hf://OWNER/NAME`; None: `kits/` of the run's store.

        Raises:
            InputError: as for `release`, or the checkpoint is one that was annealed.
        """
        from perennial.controller.trunk_kit import make_kit

        with self._checked() as work:
            return make_kit(work, origin, to)

    def plan_trunk_kit(self, origin: str | None = None, to: str | None = None) -> list[str]:
        """Return what `make_trunk_kit` would do; arguments and errors are its."""
        from perennial.controller.trunk_kit import plan_kit

        with self._checked() as work:
            return plan_kit(work, origin, to)

    def plan_release(self, *asked: str | None) -> list[str]:
        """Return what `release` would do; arguments and errors are its."""
        from perennial.controller.release import plan_release

        with self._checked() as work:
            return plan_release(work, *asked)

    def evaluate(self) -> EvaluationSummary:
        """Measure what is missing of the loss matrix; score the latest release on tasks.

        Raises:
            InputError: no stage was trained yet.
        """
        from perennial.api import training

        with self._checked() as work:
            return training.evaluate(work)

    def plan_evaluate(self) -> list[str]:
        """Return the tasks that `evaluate` would score."""
        from perennial.api import training

        with self._checked() as work:
            return training.plan_evaluate(work)

    def tune(
        self,
        tuning: TuningSpec | PathLike,
        where: PathLike = "tuning file",
        output: PathLike | None = None,
    ) -> SearchResult | LayerSearchResult:
        """Search settings of the next stage, or layers of a smaller model. Safe to repeat and kill.

        Args:
            tuning: a tuning file that names this run, or what `perennial.config.load` read from it.
            where: the file that was read, for errors.
            output: a local folder for the advice and the picture as well; None: none.

        Returns:
            Trials, their Pareto front, and advice for three preferences; with `inheritune` the
            children, and the smallest of them at parity.

        Raises:
            InputError: there is nothing to search, or a trial of it cannot be trained.
            TrialFailed: a trial failed for the last time; the finished ones are kept.
        """
        from perennial.api.searches import tune
        from perennial.api.training import read_tuning

        spec, name = read_tuning(self.spec, tuning, os.fspath(where))
        with self._checked() as work:
            return tune(work, name, spec, None if output is None else Path(output))

    def plan_tune(
        self, tuning: TuningSpec | PathLike, where: PathLike = "tuning file"
    ) -> SearchPlan | LayerSearchPlan:
        """Return the trials that `tune` would run; arguments and errors are its."""
        from perennial.api.searches import plan_tune
        from perennial.api.training import read_tuning

        spec, name = read_tuning(self.spec, tuning, os.fspath(where))
        with self._checked() as work:
            return plan_tune(work, name, spec)

    def report(self, output: PathLike | None = None) -> ReportPage:
        """Write one HTML page that needs no network to the store.

        Args:
            output: a local file as well, also where the store cannot be written; None: none.

        Raises:
            InputError: nothing has landed yet, or the store cannot be written.
        """
        from perennial.api.pictures import write_report

        with self._checked(acts=False) as work:
            return write_report(work, None if output is None else Path(output))

    def track(self) -> TrackingSummary:
        """Log the whole run again, to an MLflow that missed a part or lost it. Safe to repeat."""
        from perennial.api import training

        with self._checked(acts=False) as work:
            return training.track(work)

    def _acting(self) -> Workspace:
        if self._from_store:
            raise InputError(
                self.where, "", "a store alone can be read and decided about, not trained",
                "open the run by its run file", code="run-file-needed",
            )  # fmt: skip
        return self._reading()

    def _checked(
        self, *, acts: bool = True, verb: str = "", take_over: bool = False
    ) -> AbstractContextManager[Workspace]:
        from perennial.api.workspace import checked_workspace

        if acts:
            self._acting()
        return checked_workspace(
            self.spec, self.where, self._observers, acts=acts, verb=verb, take_over=take_over
        )
