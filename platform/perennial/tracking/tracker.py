"""The handles that training holds: a tracker of a lineage, and its runs."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from perennial.errors import InputError
from perennial.redaction import hide_secrets, hide_values
from perennial.tracking.delivery import Delivery
from perennial.tracking.destinations import Destination, mlflow_at
from perennial.tracking.failures import explain
from perennial.tracking.outbox import (
    BY_TOKENS,
    Artifact,
    End,
    Item,
    MetricPoint,
    Outbox,
    Pending,
    Receipt,
    Registration,
    Status,
    Tag,
    merge_receipts,
)

logger = logging.getLogger("perennial.tracking")

LINEAGE_TAG = "perennial.lineage"
DESCRIPTION_TAG = "mlflow.note.content"
_TOKENS_SEEN = "train/tokens_seen"
"""the metric that counts the tokens of all steps so far"""
_NAME = re.compile(r"\w[\w.@+=-]{0,199}")
_CHILD = re.compile(r"\w[\w.@+=/-]{0,199}")
_NOT_IN_KEY = re.compile(r"[^\w./: -]")
_NOT_IN_ALIAS = re.compile(r"[^A-Za-z0-9_-]")
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Standard output belongs to the command that runs.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's client would retry for minutes inside one call; the delivery thread retries instead.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class TrackedRun:
    """One run of a tracker. No method waits for a service except `wait_id`.

    Args:
        places: the run in each service's outbox; the first service's id is the run's.
    """

    def __init__(self, places: Sequence[tuple[Outbox, Pending]]) -> None:
        self._places = places

    @property
    def id(self) -> str | None:
        """Return the run's id; None while a new run has not reached the service yet."""
        return self._places[0][1].id

    def wait_id(self, timeout_seconds: float) -> str | None:
        """Wait for the run's id, at most this long; return None when it did not come."""
        outbox, pending = self._places[0]
        return outbox.wait_id(pending, timeout_seconds)

    def log(
        self, step: int, values: Mapping[str, float], tokens_per_step: int | None = None
    ) -> None:
        """Log metrics of one step, now. See `log_rows`."""
        self.log_rows([(step, _now_ms(), values)], tokens_per_step)

    def log_rows(
        self,
        rows: Iterable[tuple[int, int, Mapping[str, float]]],
        tokens_per_step: int | None = None,
    ) -> None:
        """Log rows of metrics.

        Steps of a metric rise: a value at or below the last step that this run has of it, from
        this process or an earlier one, is logged already and is left out. So rows may be logged
        again after a restart.

        Args:
            rows: (step, time in ms since 1970, values by metric name).
            tokens_per_step: log each value a second time, as `versus_tokens/<name>`, at the number
                of tokens instead of the step: MLflow plots metrics over steps and time only. The
                number is the row's own where it counts them, since stages before may have had
                another batch, and step times `tokens_per_step` elsewhere.
        """
        self._put(
            MetricPoint(prefix + _NOT_IN_KEY.sub("_", name), float(value), timestamp_ms, step)
            for row_step, timestamp_ms, values in rows
            for prefix, step in _axes(row_step, values.get(_TOKENS_SEEN), tokens_per_step)
            for name, value in values.items()
        )

    def tag(self, name: str, text: str) -> None:
        """Set a tag of the run, replacing an older one of this name."""
        self._put([Tag(name, hide_secrets(text))])

    def describe(self, text: str) -> None:
        """Set the description that MLflow shows with the run, in Markdown."""
        self.tag(DESCRIPTION_TAG, text)

    def artifact(self, source: Path | bytes, name: str) -> None:
        """Log a small file, which is read at once; secrets in a text file are hidden.

        Args:
            source: the file or its bytes.
            name: its name in MLflow, which may have folders.

        Raises:
            ValueError: the name leads out of the run.
            OSError: the file cannot be read.
        """
        path = PurePosixPath(name)
        if not path.name or path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ValueError(f"{name!r} is no artifact name")
        data = source if isinstance(source, bytes) else source.read_bytes()
        self._put([Artifact(str(path), data)])

    def register(
        self,
        model: str,
        release: str,
        location: str,
        aliases: Iterable[str] = (),
        tags: Mapping[str, object] | None = None,
    ) -> None:
        """Register a release that this run made as a version of a model in MLflow's registry.

        Registering it again makes no second version; it moves aliases and adds tags.

        Args:
            model: name of the model in the registry.
            release: name of the release.
            location: folder or URL of its files.
            aliases: names that point to this version from now on, wherever they pointed before;
                a character that MLflow refuses becomes a dash. MLflow sets `latest` itself.
            tags: facts to show with the version; secrets are hidden.
        """
        named = tuple(_NOT_IN_ALIAS.sub("-", alias) for alias in aliases)
        shown = tuple(hide_values(tags or {}).items())
        self._put([Registration(model, release, hide_secrets(location), named, shown)])

    def finish(self, status: Status = "FINISHED", at_ms: int | None = None) -> None:
        """Log that the run ended; opening it again sets it to running.

        Args:
            status: how it ended.
            at_ms: when, in ms since 1970; now by default.
        """
        self._put([End(status, _now_ms() if at_ms is None else at_ms)])

    def resume(self) -> None:
        """Log that the run goes on, after it may have ended."""
        self._put([End("RUNNING", _now_ms())])

    def _put(self, items: Iterable[Item]) -> None:
        kept = list(items)
        for outbox, pending in self._places:
            outbox.put(pending, kept)


class Tracker:
    """One lineage in its services. Close it, or what is still queued is lost with the process.

    Args:
        lineage: its name.
        destinations: the services, at least one.
        params: parameters of the lineage's own run.
    """

    def __init__(
        self,
        lineage: str,
        destinations: Sequence[Destination],
        params: Mapping[str, object] | None = None,
    ) -> None:
        self._lineage = lineage
        self._destinations = destinations
        self._outboxes = [Outbox() for _ in destinations]
        # A report looks at it too: only what trains has it running again.
        self._parent = self._run(lineage, lineage, None, params or {}, {}, reopens=False)
        self._deliveries = [
            Delivery(outbox, to) for outbox, to in zip(self._outboxes, destinations, strict=True)
        ]
        for delivery in self._deliveries:
            delivery.start()

    @property
    def lineage_run_id(self) -> str | None:
        """Return the id of the lineage's own run; None until it is known."""
        return self._parent.id

    @property
    def incomplete(self) -> bool:
        """Return whether a service is known to lack what was logged before this tracker.

        So it is with a new database, and where the lineage's own run was deleted in MLflow.
        """
        return any(outbox.complete is False for outbox in self._outboxes)

    def mark_complete(self) -> None:
        """Say that all that the store knows was logged; a service records it once it has that."""
        for outbox in self._outboxes:
            outbox.ask_mark()

    def parent_run(self) -> TrackedRun:
        """Return the lineage's own run, for the loss matrix and pictures over all stages."""
        return self._parent

    def child(
        self,
        name: str,
        run_id: str | None = None,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        parent: TrackedRun | None = None,
    ) -> TrackedRun:
        """Return the run of one stage, release, search or trial.

        It is the run with the id `run_id`, else the one that the lineage has under `name`, else a
        new one.

        Args:
            name: of the run, unique in the lineage.
            run_id: the first service's id; None or "" while it was never known.
            params: parameters, which keep the values of their first logging; secrets are hidden.
            tags: facts about the run; secrets are hidden.
            parent: the run that it is shown under; by default the lineage's own.

        Raises:
            InputError: MLflow could not look the name up.
        """
        _check(_CHILD, "run name", name)
        key = f"{self._lineage}/{name}"
        return self._run(key, name, run_id, params or {}, tags or {}, parent)

    def close(self, timeout_seconds: float = 30.0, *, patient: bool = False) -> Receipt:
        """Deliver what is left, for at most this long; one warning names what is missing.

        What is logged afterwards is ignored.

        Args:
            timeout_seconds: the longest wait.
            patient: begin that wait again as long as something is delivered.

        Returns:
            What this tracker delivered, and what it did not.
        """
        for outbox in self._outboxes:
            outbox.close()
        parts = zip(self._destinations, self._outboxes, self._deliveries, strict=True)
        return merge_receipts([_finish(*part, timeout_seconds, patient) for part in parts])

    def _run(
        self,
        key: str,
        name: str,
        run_id: str | None,
        params: Mapping[str, object],
        tags: Mapping[str, object],
        parent: TrackedRun | None = None,
        *,
        reopens: bool = True,
    ) -> TrackedRun:
        shown = {**hide_values(tags), LINEAGE_TAG: self._lineage}
        # One name that MLflow refuses would keep the whole run out of MLflow.
        known = {_NOT_IN_KEY.sub("_", field): text for field, text in hide_values(params).items()}
        places = []
        for number, outbox in enumerate(self._outboxes):
            above = None if parent is None else parent._places[number][1]
            # The id is the first service's; the others find the run by its key.
            known_id = run_id or None if number == 0 else None
            pending = Pending(key, name, known_id, known, shown, parent=above, reopens=reopens)
            places.append((outbox, outbox.add(pending)))
        return TrackedRun(places)


def _finish(
    to: Destination, outbox: Outbox, delivery: Delivery, timeout_seconds: float, patient: bool
) -> Receipt:
    """Wait until a service has all, for at most this long; a warning names what is missing."""
    delivery.join(timeout_seconds)
    brought = 0
    while patient and delivery.is_alive() and outbox.brought > brought:
        brought = outbox.brought
        delivery.join(timeout_seconds)
    failure = delivery.failure
    receipt = outbox.abandon(str(failure) if failure else "there was no time for it")
    if receipt.missing:
        logger.warning(
            "%s at %s does not have %s (%s)",
            to.name,
            hide_secrets(to.place),
            "; ".join(receipt.missing),
            receipt.reason,
        )
    return receipt


def open_tracker(
    uri: str | None,
    experiment: str,
    lineage: str,
    *,
    store: str = "",
    owned: bool = False,
    others: Sequence[Destination] = (),
    params: Mapping[str, object] | None = None,
) -> Tracker:
    """Track a lineage in an experiment of MLflow; returns before MLflow is imported.

    Args:
        uri: of the MLflow server, or of a database such as sqlite:///mlflow.db. Artifacts are
            beside an SQLite file, and where the server decides otherwise. None: not in MLflow.
        experiment: its name.
        lineage: name of the lineage.
        store: id of its store; runs of another one, of the same name, are not its own.
        owned: the SQLite file is part of the run's store, so that it may be migrated, and set
            aside where it cannot be used.
        others: services beside MLflow, or in its place.
        params: parameters of the lineage's own run.

    Raises:
        InputError: MLflow could not look the lineage's name up.
    """
    _check(_NAME, "name", lineage)
    if uri is None:
        return Tracker(lineage, others, params)
    _set_environment()
    return Tracker(lineage, [mlflow_at(uri, experiment, owned, store), *others], params)


def prepare(uri: str, *, owned: bool) -> None:
    """Have MLflow's database ready where it is an SQLite file; imports MLflow.

    Args:
        uri: of MLflow.
        owned: as for `open_tracker`.

    Raises:
        InputError: the database cannot be made or used.
    """
    _set_environment()
    from perennial.tracking.database import prepare_database

    try:
        prepare_database(uri, owned)
    except InputError:
        raise
    except Exception as error:  # of the file system, SQLite or MLflow
        failure = explain(error)
        raise InputError(
            hide_secrets(uri),
            "tracking.uri",
            f"MLflow's database cannot be used ({failure.words})",
            failure.remedy or "try again",
            code="tracking-database-unusable",
        ) from error


def page_of_lineage(uri: str, experiment: str, lineage: str, *, store: str, owned: bool) -> str:
    """Return where a lineage's own run is within MLflow's pages; "" where MLflow has none.

    Args:
        uri: of MLflow; its database is ready.
        experiment: its name.
        lineage: name of the lineage.
        store, owned: as for `open_tracker`.
    """
    _set_environment()
    from perennial.tracking.mlflow_runs import Target, lineage_page

    return lineage_page(Target(uri, experiment, owned, store), lineage) or ""


def _set_environment() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _check(pattern: re.Pattern[str], field: str, name: str) -> None:
    if not pattern.fullmatch(name):
        raise InputError(
            "tracking",
            field,
            f"{name!r} cannot name a run",
            "use letters, digits and . @ + = - _, at most 200",
            code="tracking-name-invalid",
        )


def _axes(
    step: int, tokens_seen: float | None, tokens_per_step: int | None
) -> list[tuple[str, int]]:
    """Return prefixes of a metric's name with positions on its axis: steps, and tokens if asked."""
    if tokens_per_step is None:
        return [("", step)]
    tokens = step * tokens_per_step if tokens_seen is None else int(tokens_seen)
    return [("", step), (BY_TOKENS, tokens)]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
