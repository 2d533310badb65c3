"""What can happen to a source: one small record each, written once, never changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter


class _Timed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    at: AwareDatetime
    """UTC time of writing"""


class PulledFile(BaseModel):
    """One file that was copied into the store.

    origin, version: where it came from, and what tells its content from an older one there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    origin: str
    version: str
    size_bytes: int
    sha256: str


class FilesPulled(_Timed):
    """Everything that was new by then lies in `folder`; may be nothing.

    watermark: what the next pull begins after: a command's own, or the newest file's.
    passed_over: files that are of no kind that a corpus may hold, or that were listed in vain.
    """

    kind: Literal["pulled"] = "pulled"
    folder: str
    files: tuple[PulledFile, ...]
    watermark: str
    passed_over: int = 0


class AttemptFailed(_Timed):
    """A pull, or a landing, could not be done."""

    kind: Literal["failed"] = "failed"
    reason: str


class CorpusChosen(_Timed):
    """What the first `pulls` pulls gathered, and no corpus has yet, becomes this corpus."""

    kind: Literal["chosen"] = "chosen"
    corpus: str
    pulls: int


class CorpusLanded(_Timed):
    """The corpus that was chosen is complete in the inbox."""

    kind: Literal["landed"] = "landed"
    corpus: str


SourceEvent = FilesPulled | AttemptFailed | CorpusChosen | CorpusLanded

_EVENT: TypeAdapter[SourceEvent] = TypeAdapter(Annotated[SourceEvent, Field(discriminator="kind")])


def decode_event(data: bytes) -> SourceEvent:
    """The event in one object of the log."""
    return _EVENT.validate_json(data)


def encode_event(event: SourceEvent) -> bytes:
    """The log's object of one event."""
    return event.model_dump_json(indent=1).encode()
