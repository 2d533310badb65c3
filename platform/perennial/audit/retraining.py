"""Train the steps of a damaged checkpoint again, and prove by digest that it is the same.

Where it is not the same, or nothing is left to prove it with, the store stays as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.errors import Altered, CheckpointError, InputError, TrainingFailed
from perennial.runs.event_codec import decode
from perennial.runs.events import Erased
from perennial.runs.ledger import FOLDER, Ledger, now
from perennial.runs.storage.store_events import Mended
from perennial.runs.trunk.stretch import Stretch, begin_stretch, end_stretch, plan_stretch
from perennial.store import Log, Store, download_checked
from perennial.store.aside import replace_object
from perennial.store.borrowing import BorrowingStore
from perennial.training.checkpoint.manifest import (
    MANIFEST,
    METRICS,
    CheckpointManifest,
    read_manifest,
)
from perennial.training.stack import describe_changes

if TYPE_CHECKING:
    from perennial.audit.verify import Verification
    from perennial.config import RunSpec
    from perennial.runs.state import Stage
    from perennial.training.job import Job

Train = Callable[["Job"], object]
"""trains a job to its last step; raises TrainingFailed, or InputError where it cannot begin"""


@dataclass(frozen=True)
class RetrainedCheckpoint:
    """A damaged checkpoint that was trained again, or would be, or why it was not.

    checkpoint: its key. source: key of the checkpoint from which, "" for the run's beginning.
    steps: to train. workers: that train them.
    files: names of those that are lost, and are put in place.
    code, reason: why it is left as it is; "" where it is not.
    """

    checkpoint: str
    source: str = ""
    steps: int = 0
    workers: int = 0
    files: tuple[str, ...] = ()
    code: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return asdict(self)


class Retraining:
    """Trains what is damaged of a run again, checkpoint by checkpoint.

    Args:
        store: the run's, which no other process writes to.
        spec: the run file.
        train: trains a job.
    """

    def __init__(self, store: Store, spec: RunSpec, train: Train) -> None:
        self._store = store
        self._spec = spec
        self._train = train

    def retrain(self, verification: Verification, *, acts: bool) -> list[RetrainedCheckpoint]:
        """Train every damaged checkpoint again, the earliest first.

        Args:
            verification: what is lost.
            acts: whether to train; otherwise it is planned alone.
        """
        damaged = dict(_damaged(verification.lost))
        broken = set(damaged) | set(_models(verification.lost))
        results = []
        for key in sorted(damaged, key=lambda key: (key.rpartition("/")[2], key)):
            result = RetrainedCheckpoint(key)
            try:
                stretch = self._plan(key, verification, broken)
                result = _planned(stretch, damaged[key])
                if acts:
                    self._mend(stretch, damaged[key])
                broken.discard(key)
            except InputError as why:
                reason = f"{why.problem}; {why.remedy}"
                result = replace(result, code=why.code, reason=reason)
            except (TrainingFailed, CheckpointError, Altered) as why:
                result = replace(result, code=why.code, reason=str(why))
            results.append(result)
        return results

    def _plan(self, key: str, verification: Verification, broken: set[str]) -> Stretch:
        """Return what is to be trained. Raises InputError where that is known to be in vain."""
        lost, state = verification.lost, verification.story.state
        folder, _, step = key.rpartition("/")
        stage = next((its for its in state.started_stages if its.folder == folder), None)
        if stage is None:
            raise InputError(
                key, "", "it is of a branch, and those of the trunk alone are trained again",
                "restore it from a copy; `perennial gc` lets branches go that nothing needs",
                code="retraining-of-branch",
            )  # fmt: skip
        if f"{key}/{MANIFEST}" in lost:
            raise InputError(
                key, "", "its manifest is lost, so that nothing says what its files were",
                "restore the manifest from a copy", code="retraining-without-digests",
            )  # fmt: skip
        self._check_owner(key)
        self._check_corpora(key, stage, verification)
        return plan_stretch(self._store, self._spec, state, stage, int(step), broken)

    def _check_owner(self, key: str) -> None:
        store = self._store
        if isinstance(store, BorrowingStore) and store.holder(key) is not store.own:
            raise InputError(
                key, "", "it is borrowed from another run",
                f"repair the run in {store.holder(key).url}", code="retraining-borrowed",
            )  # fmt: skip

    def _check_corpora(self, key: str, stage: Stage, verification: Verification) -> None:
        """Refuse a stretch of corpora that are not what they were."""
        names = {*stage.mix.corpora, *(source.corpus for source in stage.mix.sources)}
        first = verification.checkpoints[key].ledger_events or 0
        later = verification.story.events[first:]
        erased = [event.corpus for event in later if isinstance(event, Erased)]
        for name in sorted(names & set(erased)):
            raise InputError(
                key, "", f"text of corpus {name} was erased since it was trained",
                "no training gives it again: restore it from a copy",
                code="retraining-erased-corpus",
            )  # fmt: skip
        for name in sorted(names):
            if lost := [its for its in verification.lost if _trains(name, its)]:
                raise InputError(
                    key, "", f"it was trained on {lost[0]}, which is lost",
                    "restore that from a copy first", code="retraining-lost-corpus",
                )  # fmt: skip

    def _mend(self, stretch: Stretch, names: list[str]) -> None:
        """Train a stretch, compare, and put the files that are lost in their place.

        Raises:
            InputError: a file differs from what was recorded; nothing was changed.
        """
        begin_stretch(self._store, stretch)
        self._train(stretch.job)
        trained = read_manifest(self._store, stretch.result)
        try:
            _check_same(stretch, trained, names)
            self._record(stretch, names)
            self._put_in_place(stretch, trained, names)
        except InputError:
            end_stretch(self._store, stretch)
            raise
        end_stretch(self._store, stretch)

    def _record(self, stretch: Stretch, names: list[str]) -> None:
        """Write the event, unless a process that was killed since wrote it as its last."""
        ledger = Ledger(self._store)
        ledger.read()
        data = Log(self._store, FOLDER).read(ledger.next - 1)
        last = None if data is None else decode(data).event
        if (
            isinstance(last, Mended)
            and last.checkpoint == stretch.checkpoint
            and {*names} <= {*last.files}
        ):
            return
        event = Mended(
            at=now(),
            checkpoint=stretch.checkpoint,
            source=stretch.source,
            steps=stretch.steps,
            files=tuple(names),
        )
        ledger.transact(lambda _: event)

    def _put_in_place(
        self, stretch: Stretch, trained: CheckpointManifest, names: list[str]
    ) -> None:
        store, key, recorded = self._store, stretch.checkpoint, stretch.recorded
        with tempfile.TemporaryDirectory(prefix="perennial-repair-") as folder:
            local = Path(folder, "file")
            for name in names:
                place = trained.key_of(stretch.result, name)
                download_checked(store, place, local, trained.files[name].sha256)
                replace_object(store, recorded.key_of(key, name), local)
            if METRICS in names:
                # They have times, so that no training gives the same: the manifest names the new.
                files = recorded.files | {METRICS: trained.files[METRICS]}
                renewed = recorded.model_copy(update={"files": files})
                local.write_text(renewed.model_dump_json(indent=1))
                replace_object(store, f"{key}/{MANIFEST}", local)


def _damaged(lost: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the keys of damaged checkpoints, each with the names of its files that are lost."""
    names: dict[str, list[str]] = {}
    for key in lost:
        parts = key.split("/")
        if len(parts) > 3 and parts[0] in ("checkpoints", "branches") and parts[2].isdecimal():
            names.setdefault("/".join(parts[:3]), []).append(parts[-1])
    for checkpoint, its in names.items():
        yield checkpoint, sorted(its)


def _models(lost: Mapping[str, str]) -> Iterator[str]:
    """Yield the keys of damaged models that the run begins with."""
    yield from ("/".join(key.split("/")[:2]) for key in lost if key.startswith("models/"))


def _trains(corpus: str, key: str) -> bool:
    """Return whether an object is one that a corpus is trained from."""
    folder, _, name = key.rpartition("/")
    return folder == f"corpora/{corpus}" and (name == MANIFEST or name.startswith("shard-"))


def _planned(stretch: Stretch, names: list[str]) -> RetrainedCheckpoint:
    return RetrainedCheckpoint(
        checkpoint=stretch.checkpoint,
        source=stretch.source or "",
        steps=stretch.steps,
        workers=stretch.recorded.world_size,
        files=tuple(names),
    )


def _check_same(stretch: Stretch, trained: CheckpointManifest, names: list[str]) -> None:
    """Refuse a result of which a file is not what was recorded.

    Weights and moments are compared whether they are lost or not. A configuration may say which
    version wrote it, so that it counts where it is to be put in place.
    """
    recorded = stretch.recorded.files
    compared = [name for name in recorded if name.endswith(".safetensors") or name in names]
    for name in compared:
        its = trained.files[name].sha256 if name in trained.files else "none"
        if name != METRICS and its != recorded[name].sha256:
            raise InputError(
                stretch.checkpoint, "",
                f"trained again, its {name} has sha256 {its[:12]} in place of "
                f"{recorded[name].sha256[:12]}, and nothing was changed",
                _cause(stretch.recorded, trained), code="retraining-differs",
            )  # fmt: skip


def _cause(recorded: CheckpointManifest, trained: CheckpointManifest) -> str:
    """Return what may be the cause that two trainings differ."""
    if changes := describe_changes(recorded.stack, trained.stack):
        return f"repeat it with the software of that time: {', '.join(changes)}"
    if not recorded.stack:
        return "restore it from a copy; it does not say with which software it was trained"
    return (
        "restore it from a copy; with the same software, the cause is a setting of `training` "
        "that is another now, another number of workers on the way, or an altered manifest"
    )
