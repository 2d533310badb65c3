"""The calls to Weights & Biases. Importing this module imports wandb."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import wandb

from perennial.errors import InputError
from perennial.redaction import hide_in_file
from perennial.store import open_store
from perennial.tracking.logged_steps import LoggedSteps
from perennial.tracking.outbox import (
    BY_TOKENS,
    Artifact,
    End,
    Found,
    MetricPoint,
    Other,
    Pending,
    Registration,
    Tag,
)
from perennial.tracking.written_samples import run_id_of

_STEP = "step"
_STEPS = "perennial_steps"
"""in a run's summary: the last step of each of its metrics, as JSON"""
_COMPLETE = "perennial_complete"
_EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 1}
_INIT_SECONDS = 600.0
_OFFLINE = ("offline", "disabled", "dryrun")


class WandbRuns:
    """The runs of one project: a group a lineage, in it a run for the lineage, stage and release.

    `WANDB_MODE=offline` writes files alone, which `wandb sync` sends.

    Args:
        project: its name.
        folder: the files are in `wandb/` below it.
        store: id of the store whose runs they are.

    Raises:
        InputError: there is no key, and the mode is not offline.
    """

    def __init__(self, project: str, folder: Path, store: str) -> None:
        _check_key()
        folder.mkdir(parents=True, exist_ok=True)
        self._project = project
        self._folder = folder
        self._store_id = store
        self._store = open_store(folder)
        self._pending: dict[str, Pending] = {}
        self._open: dict[str, Any] = {}
        self._logged: dict[str, LoggedSteps] = {}

    def attach(self, run: Pending, parent_id: str | None) -> Found:
        """Continue the run of this key, or make it; its id is made of store and key."""
        run_id = run_id_of(run.key, self._store_id)
        self._pending[run_id] = run
        logged = self._logged[run_id] = LoggedSteps(self._store, f"wandb/{run_id}-steps.json")
        opened = self._opened(run_id)
        # A run that another machine wrote is known to the service alone.
        logged.merge(opened.summary.get(_STEPS))
        complete = logged.complete or bool(opened.summary.get(_COMPLETE))
        return Found(run_id, dict(logged.steps), complete)

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Write values, with the optimizer step as a metric: W&B's own step only counts calls.

        A value over tokens is left out: any metric is W&B's axis, and `train/tokens_seen` is one.
        """
        opened = self._opened(run_id)
        plain = [point for point in points if not point.name.startswith(BY_TOKENS)]
        for (step, at_ms), its in groupby(plain, lambda point: (point.step, point.timestamp_ms)):
            values = {point.name: point.value for point in its}
            opened.log({_STEP: step, "_timestamp": at_ms / 1000, **values})
        self._logged[run_id].add(points)
        opened.summary[_STEPS] = self._logged[run_id].to_json()

    def put(self, run_id: str, item: Other) -> None:
        """Write a file, a fact, a release as an artifact of type model, or the end."""
        opened = self._opened(run_id)
        match item:
            case Artifact(name=name, data=data):
                path = Path(opened.dir, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(hide_in_file(data))
                opened.save(str(path), base_path=opened.dir, policy="now")
            case Tag(name=name, text=text):
                opened.config.update({name: text}, allow_val_change=True)
            case Registration(model=model, release=release, aliases=aliases, tags=tags):
                facts = {**dict(tags), "release": release, "location": item.location}
                opened.log_artifact(
                    wandb.Artifact(model, type="model", metadata=facts), aliases=[*aliases]
                )
            case End(status=status) if status in _EXIT_CODES:
                opened.finish(exit_code=_EXIT_CODES[status])
                del self._open[run_id]

    def complete(self, run_id: str) -> None:
        """Record with the run that it has all that the store knows."""
        self._logged[run_id].mark_complete()
        self._opened(run_id).summary[_COMPLETE] = True

    def refused(self, error: Exception) -> bool:
        """Return whether W&B will never accept a value or a name."""
        return isinstance(error, ValueError | TypeError)

    def close(self) -> None:
        """Send what is left; a run that goes on later is continued."""
        for opened in self._open.values():
            opened.finish()
        self._open.clear()

    def _opened(self, run_id: str) -> Any:
        """Return the open run of an id; one that had ended is continued."""
        if run_id in self._open:
            return self._open[run_id]
        run = self._pending[run_id]
        opened = wandb.init(
            project=self._project,
            id=run_id,
            name=run.name,
            group=run.key.partition("/")[0],
            config=dict(run.params),
            dir=self._folder,
            resume="allow",
            # Runs of one lineage are open side by side.
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                x_disable_stats=True,
                # After an attempt that was given up, W&B holds the id in this process.
                init_timeout=_INIT_SECONDS,
            ),
        )
        opened.define_metric(_STEP, hidden=True)
        opened.define_metric("*", step_metric=_STEP)
        self._open[run_id] = opened
        return opened


def _check_key() -> None:
    """Refuse to ask for a key on a terminal, which is the user's command's."""
    if os.environ.get("WANDB_MODE") in _OFFLINE or wandb.api.api_key:
        return
    raise InputError(
        "W&B", "WANDB_API_KEY", "there is no key",
        "use `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline", code="wandb-key-missing",
    )  # fmt: skip
