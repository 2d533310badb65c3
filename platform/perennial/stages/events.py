"""What can happen to a run: one small record each, written once, never changed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str
    """UTC time of writing, ISO 8601; for people, never compared"""


class Opened(_Record):
    """The run exists; `spec` is the resolved run file that opened it."""

    kind: Literal["opened"] = "opened"
    spec: dict[str, Any]


class TookOver(_Record):
    """A controller took charge; every controller with a lower epoch must stop."""

    kind: Literal["took-over"] = "took-over"
    epoch: int
    controller: str


class Landed(_Record):
    """A complete corpus was seen in the inbox."""

    kind: Literal["landed"] = "landed"
    corpus: str
    size_bytes: int


class Ready(_Record):
    """The corpus is tokenised: `sequences` to train on, its manifest's digest."""

    kind: Literal["ready"] = "ready"
    corpus: str
    sequences: int
    tokens: int
    digest: str


class Refused(_Record):
    """The corpus cannot become a stage."""

    kind: Literal["refused"] = "refused"
    corpus: str
    reason: str


class Started(_Record):
    """The stage of a corpus is decided: plan, schedule, and the checkpoint it starts from."""

    kind: Literal["started"] = "started"
    corpus: str
    stage: str
    first_step: int
    start: str | None
    mix: dict[str, Any]
    schedule: dict[str, Any]
    tracking_run: str


class Trained(_Record):
    """The trunk has trained the corpus; `checkpoint` is the stage's end."""

    kind: Literal["trained"] = "trained"
    corpus: str
    checkpoint: str
    step: int


class Evaluated(_Record):
    """Held-out losses after the stage, by corpus."""

    kind: Literal["evaluated"] = "evaluated"
    corpus: str
    losses: dict[str, dict[str, Any]]


class Released(_Record):
    """A branch was annealed and exported; the trunk is as it was."""

    kind: Literal["released"] = "released"
    name: str
    source: str
    folder: str
    steps: int
    schedule: dict[str, Any]
    losses: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]


class Measured(_Record):
    """Held-out losses of a stage's end on corpora that came later."""

    kind: Literal["measured"] = "measured"
    stage: str
    losses: dict[str, dict[str, Any]]


class Scored(_Record):
    """A release's lm-eval scores, or why a task was not run."""

    kind: Literal["scored"] = "scored"
    release: str
    tasks: list[str]
    scores: list[dict[str, Any]]


CorpusEvent = Landed | Ready | Refused | Started | Trained | Evaluated
Event = Opened | TookOver | CorpusEvent | Measured | Released | Scored

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def decode(data: bytes) -> Event:
    """The event in one ledger object."""
    return _EVENT.validate_json(data)


def encode(event: Event) -> bytes:
    """The ledger object of one event."""
    return event.model_dump_json(indent=1).encode()
