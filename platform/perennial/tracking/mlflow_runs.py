"""The calls to MLflow. Importing this module imports MLflow: only the delivery thread does."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from perennial.redaction import hide_in_file
from perennial.store import open_store
from perennial.tracking.database import prepare_database
from perennial.tracking.outbox import (
    Artifact,
    End,
    Found,
    MetricPoint,
    Other,
    Pending,
    Registration,
    Tag,
)
from perennial.tracking.registry import register
from perennial.tracking.uris import ARTIFACTS, artifact_root

RUN_TAG = "perennial.run"
"""holds the key that a run is found by"""
STORE_TAG = "perennial.store"
"""holds the id of the store that a run or a version is of: two stores may have one name"""
SETTLED_TAG = "perennial.settled"
"""on a run that its creator keeps; only such a run may be continued"""
COMPLETE_TAG = "perennial.complete"
"""on the lineage's own run, once MLflow had everything that the store knew"""
PARENT_TAG = "mlflow.parentRunId"
MODEL = "model"
"""among the artifacts of a release's run in a store's own database: links to its files"""

_GIVE_WAY_SECONDS = 1.0
STALE_SECONDS = 30.0
"""how long a creator may leave its run unsettled: longer than its calls take"""
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")


class Target(NamedTuple):
    """An experiment of an MLflow, for one store.

    owned: the database is part of that store.
    store: the store's id.
    """

    uri: str
    experiment: str
    owned: bool
    store: str


class MlflowRuns:
    """One experiment of one MLflow. Every method may block, and raises what MLflow raises."""

    def __init__(self, target: Target, thorough: bool) -> None:
        prepare_database(target.uri, target.owned, thorough)
        root = artifact_root(target.uri)
        self._beside = None if root is None else open_store(root)
        self._owned = target.owned
        self._store = target.store
        self._client = MlflowClient(target.uri)
        self._experiment_id = self._experiment(target.experiment, root and ARTIFACTS)

    def attach(self, run: Pending, parent_id: str | None) -> Found:
        """Continue the run: the one of its id, else the one of its key, else a new one."""
        there = self._by_id(run) or self._by_key(run, parent_id)
        run_id = str(there.info.run_id)
        if run.reopens and there.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        if self._store and STORE_TAG not in there.data.tags:  # of an earlier version
            self._client.set_tag(run_id, STORE_TAG, self._store)
        # A parameter keeps its first value in MLflow; a run that goes on may only add some.
        new = [Param(k, v) for k, v in run.params.items() if k not in there.data.params]
        self._client.log_batch(run_id, params=new)
        steps = {m.key: int(m.step) for m in there.data.to_proto().metrics}
        return Found(run_id, steps, COMPLETE_TAG in there.data.tags)

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Write values: all or none, and those that are there already are not written twice."""
        self._client.log_batch(run_id, metrics=[Metric(*point) for point in points])

    def put(self, run_id: str, item: Other) -> None:
        """Write a file or tag, in place of an older one of its name, a registration or the end."""
        match item:
            case Artifact(name=name, data=data):
                self._put_file(run_id, name, hide_in_file(data))
            case Tag(name=name, text=text):
                self._client.set_tag(run_id, name, text)
            case Registration():
                source = self._source(run_id, item)
                register(self._client, run_id, item, source, (STORE_TAG, self._store))
            case End(status="RUNNING"):
                self._client.update_run(run_id, status="RUNNING")
            case End(status=status, timestamp_ms=timestamp_ms):
                self._client.set_terminated(run_id, status, timestamp_ms)

    def complete(self, run_id: str) -> None:
        """Record that MLflow has everything that the store knows of the run and those below it."""
        self._client.set_tag(run_id, COMPLETE_TAG, "true")

    def refused(self, error: Exception) -> bool:
        """Return whether MLflow understood the call and will never accept it."""
        return isinstance(error, MlflowException) and error.error_code in _REFUSALS

    def close(self) -> None:
        """Do nothing: every call is complete when it returns."""

    def _source(self, run_id: str, item: Registration) -> str:
        """Return what MLflow takes as the place of a release's files."""
        if "://" in item.location:
            return item.location
        if self._owned and self._beside is not None:
            # The store's own database names no path, and its server serves its artifacts alone.
            folder = Path(self._beside.url)
            _link(folder / run_id / "artifacts" / MODEL, folder.parent.parent / item.location)
            return f"{ARTIFACTS}{run_id}/artifacts/{MODEL}"
        # A server takes no path of another machine: the version names the run, a tag the folder.
        return item.location if self._beside is not None else f"runs:/{run_id}"

    def _put_file(self, run_id: str, name: str, data: bytes) -> None:
        root = str(self._client.get_run(run_id).info.artifact_uri)
        if self._beside is not None and root.startswith(ARTIFACTS):
            # MLflow itself resolves such a location on a server alone.
            self._beside.write(f"{root.removeprefix(ARTIFACTS)}/{name}", data)
            return
        path = PurePosixPath(name)
        with tempfile.TemporaryDirectory(prefix="perennial-artifact-") as scratch:
            local = Path(scratch) / path.name
            local.write_bytes(data)
            folder = str(path.parent) if path.parent.name else None
            self._client.log_artifact(run_id, str(local), folder)

    def page(self, lineage: str) -> str | None:
        """Return the address of a lineage's own run within MLflow's pages; None without one."""
        for run in self._with_key(lineage):
            if SETTLED_TAG in run.data.tags:
                return f"#/experiments/{self._experiment_id}/runs/{run.info.run_id}"
        return None

    def _experiment(self, name: str, artifacts: str | None) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        try:
            return str(self._client.create_experiment(name, artifact_location=artifacts))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _by_id(self, run: Pending) -> Any | None:
        if run.id is None:
            return None
        try:
            there = self._client.get_run(run.id)
        except MlflowException as error:
            if not self.refused(error):
                raise
            return None
        # A fork's first stages have the ids of the run that it left, which are that one's.
        its, mine = (key.partition("/")[0] for key in (there.data.tags.get(RUN_TAG, ""), run.key))
        is_mine = its in ("", mine) and self._is_of_store(there)
        return there if is_mine and there.info.lifecycle_stage == "active" else None

    def _by_key(self, run: Pending, parent_id: str | None) -> Any:
        """Return the one settled run of this key, created if there is none.

        MLflow knows no unique names, and several processes may be here at once. A process that sees
        no other run after it created its own settles it; otherwise it deletes its own and retries.
        A creator sees every run that is older than its look, so at most one is ever settled.
        """
        first_seen: dict[str, float] = {}
        while True:
            there = self._with_key(run.key)
            for run_there in there:
                if SETTLED_TAG in run_there.data.tags:
                    return run_there
            if not there and (mine := self._create_alone(run, parent_id)):
                return mine
            for run_there in there:  # its creator is at work, or died at it
                since = first_seen.setdefault(run_there.info.run_id, time.monotonic())
                if time.monotonic() - since > STALE_SECONDS:
                    self._client.delete_run(run_there.info.run_id)
            time.sleep(random.uniform(0, _GIVE_WAY_SECONDS))

    def _create_alone(self, run: Pending, parent_id: str | None) -> Any | None:
        tags = {**run.tags, RUN_TAG: run.key, **({STORE_TAG: self._store} if self._store else {})}
        if parent_id is not None:
            tags[PARENT_TAG] = parent_id
        mine = self._client.create_run(self._experiment_id, tags=tags, run_name=run.name)
        run_id = mine.info.run_id
        if [other.info.run_id for other in self._with_key(run.key)] == [run_id]:
            self._client.set_tag(run_id, SETTLED_TAG, "true")
            return mine
        self._client.delete_run(run_id)
        return None

    def _with_key(self, key: str) -> list[Any]:
        """Return the store's runs of a key, before those that name no store yet."""
        wanted = f"tags.`{RUN_TAG}` = '{key}'"
        of_key = self._client.search_runs([self._experiment_id], wanted)
        its = [run for run in of_key if self._is_of_store(run)]
        return sorted(its, key=lambda run: STORE_TAG not in run.data.tags)

    def _is_of_store(self, run: Any) -> bool:
        """Return whether a run is the store's, or of an earlier version, which named no store."""
        return run.data.tags.get(STORE_TAG, "") in ("", self._store)


def _link(links: Path, folder: Path) -> None:
    """Have the files of a folder under a second name, without copying them.

    MLflow's server refuses a symbolic link that leads out of its folder, as earlier versions of
    this package made one. A copy of a store may have the files twice.
    """
    if links.is_symlink():
        links.unlink()
    for path in folder.rglob("*"):
        link = links / path.relative_to(folder)
        if path.is_file() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, link)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, link)


def lineage_page(target: Target, lineage: str) -> str | None:
    """Return the address of a lineage's own run within MLflow's pages; None without one."""
    return MlflowRuns(target, thorough=False).page(lineage)
