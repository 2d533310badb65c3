"""Define the events that are about a run's store, and not about what was trained in it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue


class EventRecord(BaseModel):
    """Base of every event: written once, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str
    """UTC time of writing, ISO 8601; shown to users, and compared with the timetable of releases"""


class StoreEvent(EventRecord):
    """Base of the events about a store."""


class Moved(StoreEvent):
    """The run goes on in a copy of this store; nothing may follow.

    to: URL of the copy, which has no such event. Nothing else in a store names a place.
    """

    kind: Literal["moved"] = "moved"
    to: str


class Forked(StoreEvent):
    """The entries before are another run's, up to where this one left it; from here on it is alone.

    id: what names this store. parent: what names the other one.
    stage, step: the checkpoint that this run goes on from.
    spec: the resolved run file that began this run.
    """

    kind: Literal["forked"] = "forked"
    id: str
    parent: str
    stage: str
    step: int
    spec: dict[str, JsonValue]


class LetGo(StoreEvent):
    """Folders are no longer in the store, by a user's decision; they may not be removed yet.

    folders: their keys. size_bytes: of what was in them.
    """

    kind: Literal["let-go"] = "let-go"
    folders: tuple[str, ...]
    size_bytes: int


class Mended(StoreEvent):
    """Lost files of a checkpoint were trained again, and are what they were.

    Every file of its weights and of its optimizer's state has the digest that its manifest names.

    checkpoint: its key. source: key of the checkpoint from which the steps were taken once more;
        None for the model that the run begins with.
    steps: number of them. files: names of the files that were put in place.
    """

    kind: Literal["mended"] = "mended"
    checkpoint: str
    source: str | None
    steps: int
    files: tuple[str, ...]


class Upgraded(StoreEvent):
    """The last steps of the trunk were taken once more under the software that is installed now.

    checkpoint, source, steps: as for `Mended`.
    recorded, installed: versions of libraries and the kind of processor, of the checkpoint and of
        now; `recorded` is empty where the checkpoint does not name them.
    same: whether weights and the optimizer's state are the same, bit by bit.
    loss: largest difference of a step's loss, in nats per token.
    largest, relative: difference of the weights, see `WeightDifference`.
    """

    kind: Literal["upgraded"] = "upgraded"
    checkpoint: str
    source: str | None
    steps: int
    recorded: dict[str, str]
    installed: dict[str, str]
    same: bool
    loss: float
    largest: float
    relative: float


AnyStoreEvent = Moved | Forked | LetGo | Mended | Upgraded
