"""Pass 1: one piece of the input is read, checked, and staged by destination shard."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.corpora.pieces import Piece, destination, order_key, text_digest
from perennial.corpora.records import HARMLESS, Record
from perennial.corpora.spans import InputMoved, read_span
from perennial.corpora.staging import Staged, pack_run

if TYPE_CHECKING:
    from perennial.store import Store

_RECORD_BYTES = 200  # what a record costs beside its text


class PieceResult(BaseModel):
    """What one scatter task staged; also its completion marker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: int
    """run files"""
    documents: int
    """good and bad"""
    quarantined: dict[str, int]
    lost_bytes: int
    """stored bytes that could not be read"""

    @property
    def bad(self) -> int:
        """Bad documents that count towards `max_bad_share`."""
        return sum(n for reason, n in self.quarantined.items() if reason not in HARMLESS)


@dataclass(frozen=True)
class ScatterJob:
    """Everything a scatter task needs besides its piece."""

    corpus: Store
    """the corpus's folder in the inbox"""
    staging: Store
    inputs: tuple[InputFile, ...]
    settings: IngestSettings
    shards: int


def run_key(piece: int, run: int) -> str:
    """A run file's place below the staging folder."""
    return f"pieces/{piece:06d}-{run:04d}.run"


def scatter(job: ScatterJob, index: int, piece: Piece) -> PieceResult:
    """Stages a piece, unless its marker says that it was staged before."""
    marker = f"pieces/{index:06d}.json"
    try:
        return PieceResult.model_validate_json(job.staging.read(marker))
    except FileNotFoundError:
        pass
    result = _stage(job, index, piece)
    job.staging.write(marker, result.model_dump_json().encode())
    return result


def _stage(job: ScatterJob, index: int, piece: Piece) -> PieceResult:
    moved: dict[int, str] = {}
    while True:
        try:
            return _attempt(job, index, piece, moved)
        except InputMoved as error:
            moved[error.file] = error.reason


def _attempt(job: ScatterJob, index: int, piece: Piece, moved: dict[int, str]) -> PieceResult:
    segments: list[list[Staged]] = [[] for _ in range(job.shards)]
    reasons: Counter[str] = Counter()
    runs = documents = lost = held = 0

    def flush() -> None:
        nonlocal runs, held
        job.staging.write(run_key(index, runs), pack_run(segments))
        for segment in segments:
            segment.clear()
        runs, held = runs + 1, 0

    for file, record in _records(job, piece, moved):
        documents += 1
        lost += record.lost_bytes
        if record.reason:
            reasons[record.reason] += 1
        shard, row = _staged(job, file, record)
        segments[shard].append(row)
        held += len(record.text) + _RECORD_BYTES
        if held >= job.settings.piece_bytes:
            flush()
    if held:
        flush()
    quarantined = dict(sorted(reasons.items()))
    return PieceResult(runs=runs, documents=documents, quarantined=quarantined, lost_bytes=lost)


def _records(job: ScatterJob, piece: Piece, moved: dict[int, str]) -> Iterator[tuple[int, Record]]:
    for span in piece:
        reason = moved.get(span.file)
        if reason is not None:
            lost = span.end - span.start
            yield span.file, Record(span.start, reason=reason, lost_bytes=lost)
            continue
        for record in read_span(job.corpus, job.inputs[span.file], span, job.settings):
            yield span.file, record


def _staged(job: ScatterJob, file: int, record: Record) -> tuple[int, Staged]:
    seed, name = job.settings.seed, job.inputs[file].name
    where = json.dumps([name, record.offset, record.reason]).encode()
    digest = text_digest(where if record.reason else record.text)
    low, high = struct.unpack("<QQ", digest)
    order = order_key(name, record.offset, seed)
    bad = (record.reason, record.detail)
    row = Staged(file, record.offset, order, low, high, record.text, record.domain, *bad)
    return destination(digest, seed, job.shards), row
