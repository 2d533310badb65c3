"""Events of a source's log: small records, written once and never changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter


class _Timed(BaseModel):
    """Base of all events."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: AwareDatetime
    """UTC time of writing"""


class PulledFile(BaseModel):
    """A file that was copied into the store; see `FetchedFile` for its origin and version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    origin: str
    version: str
    size_bytes: int
    sha256: str


class BadFile(BaseModel):
    """A file that could not be pulled while others were.

    Attributes:
        version: as the index gives it; another one is tried at once.
        failures: pulls in a row that could not get it.
        retry_at: UTC time before which it is not tried again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    origin: str
    version: str
    reason: str
    failures: int
    retry_at: AwareDatetime


class FilesPulled(_Timed):
    """A pull copied what was new and sound, possibly nothing, into `folder`.

    Attributes:
        watermark: where the next pull begins: a command's own, or the newest file's.
        passed_over: files of an unknown format, and files that were listed but are gone.
        bad: all files that are listed and cannot be had, also those that this pull did not try.
        more_bad: bad files beyond those in the list.
        rest: files that were left for the next pull, for want of bytes or time.
    """

    kind: Literal["pulled"] = "pulled"
    folder: str
    files: tuple[PulledFile, ...]
    watermark: str
    passed_over: int = 0
    bad: tuple[BadFile, ...] = ()
    more_bad: int = 0
    rest: int = 0


class AttemptFailed(_Timed):
    """A pull or a landing failed."""

    kind: Literal["failed"] = "failed"
    reason: str


class CorpusChosen(_Timed):
    """The files of the first `pulls` pulls that are in no corpus yet become this corpus."""

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
    """Return the event in an object of the log."""
    return _EVENT.validate_json(data)


def encode_event(event: SourceEvent) -> bytes:
    """Return the log's object of an event."""
    return event.model_dump_json(indent=1).encode()
