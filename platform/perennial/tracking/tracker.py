"""The handles that training holds: a tracker for a lineage, and its runs."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from perennial.errors import InputError
from perennial.tracking.delivery import Delivery
from perennial.tracking.outbox import (
    Artifact,
    End,
    Item,
    MetricPoint,
    Outbox,
    Pending,
    Registration,
    Status,
    Tag,
)
from perennial.tracking.redaction import hide_secrets, hide_values
from perennial.tracking.uris import artifact_root

logger = logging.getLogger("perennial.tracking")

LINEAGE_TAG = "perennial.lineage"
BY_TOKENS = "by_tokens/"
_NAME = re.compile(r"\w[\w.@+=-]{0,199}")
_CHILD = re.compile(r"\w[\w.@+=/-]{0,199}")
_NOT_IN_KEY = re.compile(r"[^\w./: -]")
_NOT_IN_ALIAS = re.compile(r"[^A-Za-z0-9_-]")
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Standard output belongs to the command that runs.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own client would retry for minutes inside one call; delivery has its own patience.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class TrackedRun:
    """One run of a tracker. No method waits for MLflow except `wait_id`."""

    def __init__(self, outbox: Outbox, pending: Pending) -> None:
        self._outbox = outbox
        self._pending = pending

    @property
    def id(self) -> str | None:
        """MLflow's run id; None while a new run has not reached MLflow yet."""
        return self._pending.id

    def wait_id(self, timeout_seconds: float) -> str | None:
        """MLflow's run id, waiting for it at most so long; None when it did not come."""
        return self._outbox.wait_id(self._pending, timeout_seconds)

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
        """Log rows of (step, time in ms since 1970, values by metric name).

        tokens_per_step: log each value a second time, as `by_tokens/<name>`, at the number of
        tokens instead of the step: MLflow draws metrics over nothing but steps and time.
        Steps of a metric rise: a value at or below the last step that this run has of it, from
        this process or an earlier one, is there already and is left out. So rows may be given
        again after a restart.
        """
        self._put(
            MetricPoint(prefix + _NOT_IN_KEY.sub("_", name), float(value), timestamp_ms, step)
            for row_step, timestamp_ms, values in rows
            for prefix, step in _axes(row_step, tokens_per_step)
            for name, value in values.items()
        )

    def tag(self, name: str, text: str) -> None:
        """Show a fact about the run, in place of an older one of this name."""
        self._put([Tag(name, hide_secrets(text))])

    def artifact(self, source: Path | bytes, name: str) -> None:
        """Log a small file (it is read at once) under `name`, which may have folders.

        Secrets in a text file are hidden.

        Raises ValueError for a name that leads out of the run, OSError when it cannot be read.
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
        """Have release `release`, made by this run, as a version of `model` in the registry.

        location: where its files lie, a folder or s3://...
        aliases: names that point to this version from now on, wherever they pointed before;
            a character that MLflow does not take becomes a dash. MLflow gives `latest` itself.
        Registering a release again makes no second version; it moves aliases and adds tags.
        """
        named = tuple(_NOT_IN_ALIAS.sub("-", alias) for alias in aliases)
        shown = tuple(hide_values(tags or {}).items())
        self._put([Registration(model, release, hide_secrets(location), named, shown)])

    def finish(self, status: Status = "FINISHED", at_ms: int | None = None) -> None:
        """Log that the run ended, now by default. Opening it again makes it running again."""
        self._put([End(status, _now_ms() if at_ms is None else at_ms)])

    def _put(self, items: Iterable[Item]) -> None:
        self._outbox.put(self._pending, list(items))


class Tracker:
    """One lineage in MLflow. Close it, or what is still on its way is lost with the process."""

    def __init__(self, uri: str, experiment: str, lineage: str, artifacts: str | None) -> None:
        self._uri = uri
        self._lineage = lineage
        self._outbox = Outbox()
        self._parent = self._run(lineage, lineage, None, {}, {})
        self._delivery = Delivery(self._outbox, uri, experiment, artifacts)
        self._delivery.start()

    @property
    def lineage_run_id(self) -> str | None:
        """MLflow's id of the lineage's own run; None until it is known."""
        return self._parent.id

    def parent_run(self) -> TrackedRun:
        """The lineage's own run: for the loss matrix and pictures over all stages."""
        return self._parent

    def child(
        self,
        name: str,
        run_id: str | None = None,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        parent: TrackedRun | None = None,
    ) -> TrackedRun:
        """The run of one stage, release, search or trial, under `parent` or else the lineage's.

        It is the run with the id `run_id` (None or "" while it was never known), else the one that
        the lineage has under `name`, else a new one. Parameters keep the values of their first
        logging; secrets are hidden.
        Raises InputError for a name that cannot be looked up.
        """
        _check(_CHILD, "run name", name)
        key = f"{self._lineage}/{name}"
        return self._run(key, name, run_id, params or {}, tags or {}, parent)

    def close(self, timeout_seconds: float = 30.0) -> None:
        """Deliver what is left, for at most so long; one warning line names what is missing.

        What is logged afterwards is left out.
        """
        self._outbox.close()
        self._delivery.join(timeout_seconds)
        if missing := self._outbox.abandon():
            reason = self._delivery.last_error or "there was no time for it"
            logger.warning(
                "MLflow at %s does not have %s (%s)",
                hide_secrets(self._uri),
                "; ".join(missing),
                reason,
            )

    def _run(
        self,
        key: str,
        name: str,
        run_id: str | None,
        params: Mapping[str, object],
        tags: Mapping[str, object],
        parent: TrackedRun | None = None,
    ) -> TrackedRun:
        shown = {**hide_values(tags), LINEAGE_TAG: self._lineage}
        # A name that MLflow refuses would keep the whole run out of it.
        known = {_NOT_IN_KEY.sub("_", field): text for field, text in hide_values(params).items()}
        above = None if parent is None else parent._pending
        pending = Pending(key, name, run_id or None, known, shown, parent=above)
        return TrackedRun(self._outbox, self._outbox.add(pending))


def open_tracker(uri: str, experiment: str, lineage: str, artifacts: str | None = None) -> Tracker:
    """Track a lineage in an experiment of the MLflow at `uri`; returns before MLflow is loaded.

    artifacts: where a new experiment keeps its files; by default beside an SQLite file, and
    where the server decides otherwise.
    Raises InputError for a lineage name that cannot be looked up.
    """
    _check(_NAME, "name", lineage)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return Tracker(uri, experiment, lineage, artifacts or artifact_root(uri))


def _check(pattern: re.Pattern[str], field: str, name: str) -> None:
    if not pattern.fullmatch(name):
        raise InputError(
            "tracking",
            field,
            f"{name!r} cannot name a run",
            "use letters, digits and . @ + = - _, at most 200",
        )


def _axes(step: int, tokens_per_step: int | None) -> list[tuple[str, int]]:
    """Prefix of a metric's name and place on its axis: by steps, and by tokens where asked."""
    by_tokens = [] if tokens_per_step is None else [(BY_TOKENS, step * tokens_per_step)]
    return [("", step), *by_tokens]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
