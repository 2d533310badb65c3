"""A stretch of a stage that is trained again, in a folder of its own, to be compared.

What a stage computes follows from its plan and the checkpoint that it goes on from (I1, I2), so the
steps up to a committed checkpoint can be taken once more by as many workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from perennial.config.changes import with_held
from perennial.corpora import read_manifest as read_corpus
from perennial.errors import InputError
from perennial.runs.job_factory import stage_job
from perennial.runs.storage.space import RETRAINING
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.checkpoint.manifest import CheckpointManifest
from perennial.training.spikes.skips import Skip, record_skip
from perennial.training.stack import find_versions

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.config.training import TrainingSpec
    from perennial.runs.state import RunState, Stage
    from perennial.store import Store
    from perennial.training.job import Job

_PLAN = "plan.json"


@dataclass(frozen=True)
class Stretch:
    """The steps from one checkpoint of a stage, or its beginning, to the next.

    checkpoint: key of the checkpoint that they lead to. recorded: its manifest.
    source: key of the checkpoint that they begin from; None for the model that the run begins with.
    first_step: trunk step at which they begin.
    job: takes them, in a folder of its own.
    """

    checkpoint: str
    recorded: CheckpointManifest
    source: str | None
    first_step: int
    job: Job

    @property
    def steps(self) -> int:
        """Return the number of steps."""
        return self.recorded.step - self.first_step

    @property
    def result(self) -> str:
        """Return the key of the checkpoint to which the job leads."""
        return checkpoints.folder_of(self.job.folder, self.recorded.step)


def plan_stretch(
    store: Store,
    spec: RunSpec,
    state: RunState,
    stage: Stage,
    step: int,
    damaged: Collection[str] = (),
) -> Stretch:
    """Plan the steps that lead to a checkpoint of a stage, from the last sound one before it.

    Args:
        store: the run's store.
        spec: the run file; what the stage kept of its own stands in its place.
        state: the run as of the last read of the ledger.
        stage: the stage.
        step: trunk step of the checkpoint.
        damaged: keys of checkpoints, and of models that the run begins with, that are not sound.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        Damaged: its manifest cannot be read.
        InputError: there is nothing sound that the steps could begin from, or a corpus is lost.
    """
    key = checkpoints.folder_of(stage.folder, step)
    recorded = checkpoints.read_manifest(store, key)
    before = [s for s in checkpoints.committed_steps(store, stage.folder) if s < step]
    sound = [s for s in before if checkpoints.folder_of(stage.folder, s) not in damaged]
    first = sound[-1] if sound else stage.first_step
    source = checkpoints.folder_of(stage.folder, first) if sound else stage.start
    if source is None:
        lost = next((model for model in damaged if model.startswith("models/")), None)
    else:
        is_there = store.exists(f"{source}/{checkpoints.MANIFEST}")
        lost = None if is_there and source not in damaged else source
    if lost is not None:
        raise InputError(
            key, "", f"it was trained from {lost}, which is damaged or missing",
            "restore that one from a copy first", code="retraining-start-lost",
        )  # fmt: skip
    names = dict.fromkeys([*stage.mix.corpora, *(source.corpus for source in stage.mix.sources)])
    manifests = {name: read_corpus(store, name) for name in names}
    job = stage_job(with_held(spec, stage.settings), state, stage, manifests)
    job = replace(
        job,
        name=f"{stage.name}-again",
        folder=f"{RETRAINING}/{key}",
        until=None if step == stage.last_step else step,
        # Its losses were measured when it was trained first.
        old=(),
        training=_as_recorded(job.training, recorded),
    )
    return Stretch(key, recorded, source, first, job)


def _as_recorded(training: TrainingSpec, recorded: CheckpointManifest) -> TrainingSpec:
    """Return the engine's settings for as many workers; what was left out is known already."""
    number = {"min": recorded.world_size, "max": recorded.world_size}
    return training.model_copy(
        update={
            "workers": training.workers.model_copy(update=number),
            "spikes": training.spikes.model_copy(update={"policy": "ignore"}),
            "profile": False,
        }
    )


def begin_stretch(store: Store, stretch: Stretch) -> None:
    """Prepare the folder of a stretch: what the job goes on from. Safe to repeat and to kill.

    What an earlier process trained there stays where it was trained by the same job, with the same
    software; anything else is removed.

    Raises:
        Altered: a file of the checkpoint that it begins from is damaged.
    """
    job, recorded = stretch.job, stretch.recorded
    plan = {"job": job.to_dict(), "versions": find_versions()}
    name = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest().encode()
    where = f"{job.folder}/{_PLAN}"
    if not (store.exists(where) and store.read(where) == name):
        end_stretch(store, stretch)
        store.write(where, name)
    for step in recorded.skipped:
        record_skip(store, job.folder, Skip(step=step, reason="left out before", origins=()))
    is_begun = checkpoints.latest_step(store, job.folder) is not None
    if not is_begun and stretch.first_step > job.first_step:
        assert stretch.source is not None, "it is a checkpoint of the stage itself"
        source = checkpoints.read_manifest(store, stretch.source)
        checkpoints.copy_checkpoint(store, stretch.source, source, job.folder, {"name": job.name})


def end_stretch(store: Store, stretch: Stretch) -> None:
    """Remove the folder of a stretch, and the notes of its workers' starts."""
    store.remove(stretch.job.folder)
    store.remove(f"starts/{stretch.job.folder}")
    if not store.list(RETRAINING):
        store.remove(RETRAINING)  # the empty folders above it
