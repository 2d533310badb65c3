"""Training, releasing, measuring and tracking a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from perennial.api.results import (
    EvaluationSummary,
    ReleaseSummary,
    TrackingSummary,
    TrainingSummary,
    WatchedLook,
)
from perennial.config import RunSpec, load, load_run
from perennial.config.search import TuningSpec
from perennial.controller import loop
from perennial.controller import release as releases
from perennial.controller.before_compute import check_names
from perennial.controller.decisions import choices
from perennial.controller.source_poller import Puller, open_sources, pull_due, utc_now
from perennial.controller.webhook import Wakeup
from perennial.errors import InputError
from perennial.evaluation.kept_samples import read_samples
from perennial.runs import summary
from perennial.runs.actions import awaited_proxies
from perennial.runs.stage_planner import order_of
from perennial.store import open_store

if TYPE_CHECKING:
    from perennial.controller.context import Workspace


def advance(work: Workspace, *, reschedule: bool) -> TrainingSummary:
    """Train every stage that is not done yet; see `Run.advance`."""
    loop.check_inbox(work)
    check_names(work)
    trained = loop.advance(work, reschedule=reschedule)
    corpora = work.state.corpora
    if not corpora:
        raise InputError(
            work.inbox.url, "", "no complete corpus has landed",
            f"land one: `perennial land {work.where} NAME FILES...`", code="nothing-landed",
        )  # fmt: skip
    wrong = [corpus for corpus in corpora.values() if not corpus.holds_nothing_new]
    if wrong and all(corpus.state == "refused" for corpus in wrong):
        last = wrong[-1]
        raise InputError(
            f"{work.inbox.url}/{last.name}", "",
            f"every corpus was refused, this one because: {last.reason}",
            f"land another, or `perennial retry {work.where} {last.name}` when that is mended",
            code="every-corpus-refused",
        )  # fmt: skip
    _check_proxies(work)
    return _summarize(work, trained)


def _check_proxies(work: Workspace) -> None:
    """Refuse a run whose first stage waits for a proxy corpus that has not landed."""
    awaited = awaited_proxies(work.state, order_of(work.spec))
    absent = [name for name in awaited if name not in work.state.corpora]
    if absent:
        raise InputError(
            work.where, f"stages.corpora.{absent[0]}.role",
            f"the first stage replays {absent[0]}, which has not landed",
            f"land it with `perennial land {work.where} {absent[0]} FILES...`, or remove the role",
            code="proxy-missing",
        )  # fmt: skip


def plan_advance(work: Workspace) -> list[str]:
    """Return what `advance` and `watch` would do first, and what waits behind it."""
    loop.check_inbox(work)
    check_names(work)
    return loop.todo(work)


def watch(
    work: Workspace,
    on_look: Callable[[WatchedLook], None],
    interval_seconds: float,
    *,
    webhook_port: int | None,
    reschedule: bool,
) -> NoReturn:
    """Look at the inbox until SIGTERM; see `Run.watch`."""

    def report(look: loop.Look) -> None:
        summary = _summarize(work, look.trained) if look.trained else None
        on_look(WatchedLook(summary, look.failure, work.inbox.url))

    # Sources are pulled beside training, which may take days.
    puller = Puller(work, interval_seconds)
    puller.start()
    try:
        with Wakeup(webhook_port, work.log) as wakeup:
            loop.watch(work, lambda: wakeup.wait(interval_seconds), report, reschedule=reschedule)
    finally:
        puller.stop()


def watch_once(work: Workspace, *, reschedule: bool) -> TrainingSummary:
    """Look at sources and inbox once, and train what is there."""
    loop.check_inbox(work)
    pull_due(work, open_sources(work), utc_now())
    return _summarize(work, loop.advance(work, reschedule=reschedule))


def _summarize(work: Workspace, trained: int) -> TrainingSummary:
    return TrainingSummary(
        trained=trained,
        matrix=summary.matrix(work.state, summary.SHOWN_STAGES),
        tokens=summary.tokens_by_source(work.state, work.spec.corpora.sequence_length),
        gated=summary.gated(work.spec, work.state),
        choices=choices(work.state, work.where),
        store=work.store.url,
        nothing_new=[c.name for c in work.state.corpora.values() if c.holds_nothing_new],
        waiting=work.waiting,
    )


def release(
    work: Workspace,
    origin: str | None,
    tokens: str | None,
    to: str | None,
    copied_as: releases.Format,
    mixture: str | None,
    average: str | None,
) -> ReleaseSummary:
    """Anneal and export a branch; see `Run.release`."""
    released = releases.release(work, origin, tokens, to, copied_as, mixture, average)
    url = f"{work.store.url}/{released.folder}"
    samples = read_samples(work.store, released.samples)
    return ReleaseSummary(released, samples, summary.matrix(work.state, summary.SHOWN_STAGES), url)


def read_tuning(
    spec: RunSpec, tuning: TuningSpec | str | os.PathLike[str], where: str
) -> tuple[TuningSpec, str]:
    """Return a search, and the name of its file.

    Args:
        spec: the run file of the run whose method was called.
        tuning: the search, or a tuning file.
        where: the file's name, where it was read already.

    Raises:
        InputError: the file is wrong, or names a run in another store.
    """
    if isinstance(tuning, TuningSpec):
        return tuning, where
    path = os.fspath(tuning)
    search = load(Path(path), TuningSpec)
    check_names_run(path, search.run, spec, "tune")
    return search, path


def check_names_run(where: str, run_file: str, spec: RunSpec, method: str) -> None:
    """Refuse a tuning or study file of another run.

    Args:
        where: the file, for errors.
        run_file: that it names.
        spec: the run file of the run whose method was called.
        method: its name.

    Raises:
        InputError: the file names a run in another store.
    """
    named = open_store(load_run(Path(run_file)).store).url
    if named != open_store(spec.store).url:
        code = "tuning-of-another-run" if method == "tune" else "study-of-another-run"
        raise InputError(
            where, "run", f"names a run in another store, {named}",
            f"name the run file of {spec.name}, or call `{method}` on the run that it names",
            code=code,
        )  # fmt: skip


def evaluate(work: Workspace) -> EvaluationSummary:
    """Measure what is missing; see `Run.evaluate`."""
    _check_trained(work)
    releases.evaluate(work)
    return EvaluationSummary(
        summary.matrix(work.state, summary.SHOWN_STAGES),
        summary.untrained_nats(work.store),
        work.state.scores,
    )


def plan_evaluate(work: Workspace) -> list[str]:
    """Return the tasks that `evaluate` would score."""
    _check_trained(work)
    return [f"score {task}" for task in work.spec.evaluation.tasks]


def _check_trained(work: Workspace) -> None:
    if not work.state.ends:
        raise InputError(
            work.where, "", "no stage was trained yet", f"use `perennial run {work.where}`",
            code="nothing-trained",
        )  # fmt: skip


def track(work: Workspace) -> TrackingSummary:
    """Log the whole run to its services again; see `Run.track`."""
    from perennial.report.publish import catch_up
    from perennial.telemetry.mlflow_observer import mlflow_of, tracking_places, tracking_uri
    from perennial.tracking import hide_secrets

    work.store.check()
    mlflow = mlflow_of(work)
    stages = catch_up(work, mlflow.tracker(work))
    receipt = mlflow.deliver(work)
    lacking = {words.partition(": ")[0] for words in receipt.missing}
    whole = [name for name in stages if f"{work.spec.name}/{name}" not in lacking]
    uri = hide_secrets(tracking_uri(work)) if "mlflow" in work.spec.tracking.to else ""
    return TrackingSummary(uri, tracking_places(work), whole, receipt)
