"""Take the trunk's last steps once more under the software that is installed, and compare.

A trunk of years outlives the versions that it was begun with. Nothing of it changes here: the steps
are taken in a folder of their own, and the differences become an event of the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from perennial.errors import InputError
from perennial.runs.event_codec import decode
from perennial.runs.lease import hold_alone
from perennial.runs.ledger import FOLDER, Ledger, now
from perennial.runs.storage.store_events import Upgraded
from perennial.runs.trunk.stretch import Stretch, begin_stretch, end_stretch, plan_stretch
from perennial.store import Log, Store
from perennial.training.checkpoint.manifest import committed_steps, read_manifest, read_rows
from perennial.training.model.difference import measure_difference
from perennial.training.stack import describe_changes

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.training.job import Job

LARGEST_ROUNDING = 1e-4
"""nats per token: by more than this, other orders of adding up do not change a step's loss (I9)"""


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step as it was recorded, and under the software of now; nats per token."""

    step: int
    before: float
    after: float


@dataclass(frozen=True)
class StackComparison:
    """The difference that the installed software makes to the last steps of the trunk.

    Attributes:
        checkpoint, source: keys of the checkpoints between which the steps lie; `source` is "" for
            the run's beginning.
        steps: number of them.
        workers: that take them.
        before, after: versions of libraries and the kind of processor; `before` is empty where the
            checkpoint does not name them.
        same: whether weights and the optimizer's state are the same, bit by bit.
        losses: of every step.
        loss: largest difference of a step's loss.
        largest: of the differences of single weights.
        relative: norm of the difference of the weights, in proportion to that of the weights.
    """

    checkpoint: str
    source: str
    steps: int
    workers: int
    before: dict[str, str]
    after: dict[str, str]
    same: bool
    losses: tuple[StepLoss, ...]
    loss: float
    largest: float
    relative: float

    @property
    def changes(self) -> list[str]:
        """Return what differs between the two stacks, in words."""
        return describe_changes(self.before, self.after)

    @property
    def is_rounding(self) -> bool:
        """Return whether no loss differs by more than other orders of adding up explain."""
        return self.loss <= LARGEST_ROUNDING

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return asdict(self) | {"changes": self.changes, "is_rounding": self.is_rounding}


def plan_upgrade(store: Store, spec: RunSpec) -> Stretch:
    """Return the steps that `compare_stacks` would take; arguments and errors are its."""
    state = Ledger(store).read()
    for stage in reversed(state.stages):
        steps = committed_steps(store, stage.folder)
        if steps:
            return plan_stretch(store, spec, state, stage, steps[-1])
    raise InputError(
        store.url, "", "the trunk has no checkpoint yet", "train a stage first",
        code="nothing-trained",
    )  # fmt: skip


def compare_stacks(store: Store, spec: RunSpec, train: Callable[[Job], object]) -> StackComparison:
    """Take the last steps of the trunk once more, and record the difference as an event.

    Safe to repeat and to kill.

    Args:
        store: the run's store.
        spec: the run file.
        train: trains a job to its last step.

    Raises:
        Busy: another process trains or tokenises, and lives.
        InputError: there is no checkpoint, or what it was trained from is gone.
        TrainingFailed: the installed software cannot take the steps.
        Damaged, Altered: a checkpoint is damaged.
    """
    plan_upgrade(store, spec)  # before anything is written
    with hold_alone(store, "upgrade", now()):
        stretch = plan_upgrade(store, spec)
        begin_stretch(store, stretch)
        train(stretch.job)
        compared = _compare(store, stretch)
        _record(store, compared)
        end_stretch(store, stretch)
    return compared


def _compare(store: Store, stretch: Stretch) -> StackComparison:
    recorded, trained = stretch.recorded, read_manifest(store, stretch.result)
    before = _losses(read_rows(store, stretch.checkpoint, recorded))
    after = _losses(read_rows(store, stretch.result, trained))
    steps = [step for step in sorted(before.keys() & after.keys()) if step > stretch.first_step]
    losses = tuple(StepLoss(step, before[step], after[step]) for step in steps)
    tensors = [name for name in recorded.files if name.endswith(".safetensors")]
    weights = measure_difference(store, stretch.checkpoint, stretch.result)
    return StackComparison(
        checkpoint=stretch.checkpoint,
        source=stretch.source or "",
        steps=stretch.steps,
        workers=recorded.world_size,
        before=recorded.stack,
        after=trained.stack,
        same=all(trained.files.get(name) == recorded.files[name] for name in tensors),
        losses=losses,
        loss=max((abs(its.after - its.before) for its in losses), default=0.0),
        largest=weights.largest,
        relative=weights.relative,
    )


def _losses(rows: list[dict[str, Any]]) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def _record(store: Store, compared: StackComparison) -> None:
    """Write the event, unless the last one is the same."""
    event = Upgraded(
        at=now(),
        checkpoint=compared.checkpoint,
        source=compared.source or None,
        steps=compared.steps,
        recorded=compared.before,
        installed=compared.after,
        same=compared.same,
        loss=compared.loss,
        largest=compared.largest,
        relative=compared.relative,
    )
    ledger = Ledger(store)
    ledger.read()
    data = Log(store, FOLDER).read(ledger.next - 1)
    last = None if data is None else decode(data).event
    if last is None or last.model_copy(update={"at": event.at}) != event:
        ledger.transact(lambda _: event)
