"""Reading of the latest sound checkpoint, the same one on every rank.

A checkpoint of a large model is many times larger than what one worker needs of it. So the weights
are read once, by the nodes together (`peer_copy`), and of the optimizer's files each worker fetches
those that hold its part.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from perennial.corpora.growth.extend import pieces_of_entries
from perennial.corpora.tokenizer import load_tokenizer
from perennial.errors import Damaged, StartDamaged, Unsound, Vanished
from perennial.optimizers import check_same_optimizer
from perennial.store import Store
from perennial.store.stored_json import parse_json
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.checkpoint.agreement import agreed
from perennial.training.checkpoint.manifest import MANIFEST, METRICS, OPTIMIZER, CheckpointManifest
from perennial.training.checkpoint.peer_copy import copy_to_nodes, is_first_of_node
from perennial.training.checkpoint.same_plan import check_same_plan
from perennial.training.job import Job
from perennial.training.model.growth import grow_folder
from perennial.training.model.initial import (
    STATE_FOLDER,
    draw_initial,
    fetch_initial,
    fetch_state,
    initial_state,
)
from perennial.training.model.shards import absent_files

T = TypeVar("T")


@dataclass(frozen=True)
class ResumePoint:
    """The point from which a job resumes, or starts.

    step: trunk step.
    folder: local files of the checkpoint, shared by the workers of a node; None without one.
    initial: local files of the model that the run begins with, shared alike; None with `folder`,
        and where this rank draws random weights itself.
    optimizer_steps: steps that the moments have taken; None when they start from zero.
    optimizer_files: the files of moments and fp32 weights, read once; fetched as they are asked
        for, and those that hold this rank's part come first. Raises Damaged.
    resumed: whether the checkpoint is the job's own.
    loss_scale: fp16's factor of the loss; None without a checkpoint that has one.
    exact: whether `optimizer_files` have the fp32 weights of a model that is computed in fewer bits
        and read from `initial`.
    """

    step: int
    folder: Path | None = None
    initial: Path | None = None
    optimizer_steps: int | None = None
    optimizer_files: Iterator[Path] = field(default_factory=lambda: iter(()), repr=False)
    resumed: bool = False
    loss_scale: float | None = None
    exact: bool = False

    @property
    def history(self) -> Path | None:
        """Return the local file with the metrics of the steps before `step`, or None."""
        return self.folder / METRICS if self.folder and self.resumed else None

    def last_rows(self, count: int) -> list[dict[str, Any]]:
        """Return the rows of the last `count` steps before `step`; fewer where there are fewer."""
        if self.history is None:
            return []
        with self.history.open() as lines:
            return [parse_json(line) for line in deque(lines, maxlen=count)]


def begin_from_latest(
    job: Job, store: Store, scratch: Path, driver: Any, begin: Callable[[ResumePoint], T]
) -> T:
    """Call `begin` with the latest checkpoint that is sound on every rank, and return its result.

    A collective. A checkpoint that turns out to be damaged, here or in `begin`, is reported and
    set aside, and the one before it is taken; without any, the job starts from its beginning.

    Args:
        job: the job.
        store: the run's store.
        scratch: local folder for the checkpoint's files, which are needed until this returns.
        driver: handle of the driver's progress actor.
        begin: may use no collective after its first use of `optimizer_files`, because a damaged
            file ends it on one rank alone.

    Raises:
        StartDamaged: the checkpoint that the job itself starts from is damaged.
        InputError: the checkpoint holds the state of another optimizer (`optimizer-changed`).
    """
    while (step := _latest(job, store)) is not None:
        key = checkpoints.folder_of(job.folder, step)
        try:
            return _begin_from(job, store, key, scratch / key, begin, resumed=True)
        except Unsound as unsound:
            _set_aside(job, store, key, unsound.damages, driver)
        dist.barrier()
    if job.start is None:
        return _begin_from_initial(job, store, scratch, begin)
    try:
        return _begin_from(job, store, job.start, scratch / job.start, begin, resumed=False)
    except Unsound as unsound:
        raise StartDamaged(
            f"{unsound.damages[0]}; {job.name} starts from there, so restore that file: "
            "`perennial repair` takes it from a copy, or trains it again with --retrain"
        ) from None


def check_latest(job: Job, store: Store) -> None:
    """Raise InputError when a job would go on from a state that is not its own.

    That is of another optimizer than it trains with, or a checkpoint of another plan.

    Asked before a cluster is used. A checkpoint that cannot be read now is left to the workers,
    which set it aside and fall back to the one before.
    """
    step = checkpoints.latest_step(store, job.folder)
    key = job.start if step is None else checkpoints.folder_of(job.folder, step)
    if key is None or (step is None and job.optimizer == "reset"):
        return
    with suppress(FileNotFoundError, Damaged):
        manifest = checkpoints.read_manifest(store, key)
        check_same_optimizer(key, manifest.optimizer, job.training.optimizer_config.kind)
        if step is not None:
            check_same_plan(key, manifest, job.mix, job.schedule)


def _latest(job: Job, store: Store) -> int | None:
    """Return the latest committed step: rank 0 reads the store and broadcasts it."""
    chosen: list[int | None] = [None]
    if dist.get_rank() == 0:
        chosen[0] = checkpoints.latest_step(store, job.folder)
    dist.broadcast_object_list(chosen, src=0)
    return chosen[0]


def _set_aside(job: Job, store: Store, key: str, damages: list[Damaged], driver: Any) -> None:
    """Quarantine a damaged checkpoint, on rank 0; one that vanished is gone already."""
    if dist.get_rank() != 0 or any(isinstance(damage, Vanished) for damage in damages):
        return
    checkpoints.quarantine(store, key)
    before = checkpoints.latest_step(store, job.folder)
    where = "its beginning" if before is None else f"the checkpoint of step {before:,}"
    driver.notice.remote(f"{damages[0]}; going on from {where}")


def _begin_from(
    job: Job,
    store: Store,
    key: str,
    folder: Path,
    begin: Callable[[ResumePoint], T],
    *,
    resumed: bool,
) -> T:
    """Begin from one checkpoint; Unsound is raised on every rank when any of them finds damage."""
    manifest = agreed(lambda: _read_sound(store, key))
    with_moments = resumed or job.optimizer != "reset"
    if with_moments:
        check_same_optimizer(key, manifest.optimizer, job.training.optimizer_config.kind)
    parts = {name for name in manifest.files if name.startswith(OPTIMIZER)}
    shared = manifest.files.keys() - parts
    # Without ZeRO every rank has the whole of the optimizer's state.
    if whole := with_moments and job.training.zero_stage == 0:
        shared |= parts
    copy_to_nodes(store, key, manifest, shared, folder)
    if not resumed:
        agreed(lambda: _grow(store, job, folder) if is_first_of_node() else None)
    of_node = _folder_of_node(folder)
    start = ResumePoint(
        manifest.step if resumed else job.first_step,
        folder=of_node,
        optimizer_steps=manifest.optimizer_steps if with_moments else None,
        optimizer_files=(
            (of_node / name for name in sorted(parts))
            if whole
            else _optimizer_files(store, key, manifest, folder)
        ),
        resumed=resumed,
        loss_scale=manifest.loss_scale,
    )
    return agreed(lambda: begin(start))


def _begin_from_initial(
    job: Job, store: Store, scratch: Path, begin: Callable[[ResumePoint], T]
) -> T:
    """Begin from the model that the run begins with, and the optimizer's state of a trunk kit."""
    initial = _fetch_initial(job, store, scratch)

    def start() -> ResumePoint:
        state = initial_state(job, store)
        if state is None or state.optimizer is None:
            return ResumePoint(job.first_step, initial=initial)
        its = state.optimizer
        folder = scratch / STATE_FOLDER

        def fetch(name: str) -> Path:
            fetch_state(store, state, name, folder)
            return folder / name

        return ResumePoint(
            job.first_step,
            initial=initial,
            optimizer_steps=None if job.optimizer == "reset" else its.steps,
            optimizer_files=_nearest_files(list(state.files), fetch),
            loss_scale=its.loss_scale,
            exact=True,
        )

    try:
        point = agreed(start)
        return agreed(lambda: begin(point)) if point.exact else begin(point)
    except Unsound as unsound:
        raise StartDamaged(
            f"{unsound.damages[0]}; the run begins with it, so restore that file from a copy"
        ) from None


def _read_sound(store: Store, key: str) -> CheckpointManifest:
    """Return the manifest of a checkpoint that lists every file of its model."""
    try:
        manifest = checkpoints.read_manifest(store, key)
    except FileNotFoundError:
        raise Vanished(f"{key}/{MANIFEST}", "is missing") from None
    if absent := absent_files(manifest.files):
        raise Damaged(f"{key}/{MANIFEST}", f"does not list {absent[0]}")
    return manifest


def _grow(store: Store, job: Job, folder: Path) -> None:
    """Give the files of the model that a job starts from rows for the new entries."""
    if job.grown_from is not None:
        tokenizer = load_tokenizer(store, job.tokenizer)
        grow_folder(folder, job.grown_from, pieces_of_entries(tokenizer.json, job.grown_from))


def _fetch_initial(job: Job, store: Store, scratch: Path) -> Path | None:
    """Fetch the stored model that the run begins with, or draw a random one, once a node.

    So a node holds a model once, in the pages of its files. A collective.

    Returns:
        The folder of its files; None for a random model of a worker that is alone on its node.

    Raises:
        StartDamaged: a file of it is missing or damaged.
    """
    is_stored = job.model.path is not None
    workers = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if not is_stored and workers == 1 and job.training.zero_stage < 3:
        return None
    folder = scratch / "initial"

    def fetch() -> None:
        if is_first_of_node():
            if is_stored:
                fetch_initial(store, folder)
                _grow(store, job, folder)
            else:
                draw_initial(job, folder)

    try:
        agreed(fetch)
    except Unsound as unsound:
        raise StartDamaged(
            f"{unsound.damages[0]}; the run begins with it, so restore that file from a copy"
        ) from None
    return _folder_of_node(folder)


def _folder_of_node(mine: Path) -> Path:
    """Return the folder of the worker that fetched for this worker's node."""
    node = os.environ.get("NODE_RANK", "0")
    folders: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(folders, (node, str(mine)) if is_first_of_node() else None)
    return Path(dict(pair for pair in folders if pair is not None)[node])


def _optimizer_files(
    store: Store, key: str, manifest: CheckpointManifest, folder: Path
) -> Iterator[Path]:
    """Fetch the optimizer's files one by one, this rank's part first.

    Every worker owns a run of the whole state in the order of the ranks. How the runs are cut
    depends on the ZeRO stage and its padding, so the order is a guess that is right but at the
    edges, and the reader goes on asking until it has all.
    """

    def fetch(name: str) -> Path:
        checkpoints.download(store, key, manifest, [name], folder)
        return folder / name

    names = [name for name in manifest.files if name.startswith(OPTIMIZER)]
    return _nearest_files(names, fetch)


def _nearest_files(names: list[str], fetch: Callable[[str], Path]) -> Iterator[Path]:
    """Fetch numbered files one by one, those nearest to this rank's part first."""
    ordered = sorted(names, key=lambda name: int(name.split("-")[1]))
    order = nearest_first(len(ordered), dist.get_rank(), dist.get_world_size())
    return (fetch(ordered[index]) for index in order)


def nearest_first(parts: int, rank: int, world_size: int) -> list[int]:
    """Return the indices of `parts` equal parts of a whole, the nearest to a rank's share first.

    Parts that overlap the most with the share come first, then those that touch it, and so on.
    """

    def distance(part: int) -> int:
        first, last = part * world_size, (part + 1) * world_size
        return max(first - (rank + 1) * parts, rank * parts - last)

    return sorted(range(parts), key=distance)
