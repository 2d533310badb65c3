"""First pass: pieces of the input are read, checked, and staged by destination shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from perennial.corpora.file_list import ListedFile, escape_text, moved_file
from perennial.corpora.formats.base import Record, counts_as_bad
from perennial.corpora.formats.open import read_span
from perennial.corpora.ingest.documents import Removed, encode_removed
from perennial.corpora.ingest.domains import DomainSizes
from perennial.corpora.ingest.fuzzy_dedup import bands_bytes, encode_bands
from perennial.corpora.ingest.losses import FileLoss
from perennial.corpora.ingest.partition import (
    InputPiece,
    Layout,
    choose_parts,
    digest_text,
    group_by_digest,
    group_rows,
    holdout_bound,
    make_file_salts,
    make_layout,
    make_order_keys,
)
from perennial.corpora.ingest.repeated_lines import encode_lines
from perennial.corpora.ingest.sample import apply_steps
from perennial.corpora.ingest.spill import SectionFile, encode_digests, run_key
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.errors import InputMoved
from perennial.steps import StepPipeline

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.store import Store

_RECORD_BYTES = 200  # what a record costs beside its text


KEPT_RECORDS = 1000
"""of each reason in a piece, as evidence should the corpus be refused"""


class BadRecord(BaseModel):
    """A record with a reason; `file` is its number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: int
    offset: int
    detail: str


class PieceResult(BaseModel):
    """Summary of what one scatter task staged; also its completion marker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: int
    """number of run files"""
    domains: tuple[tuple[str, ...], ...] = ()
    """in a corpus of parts, the domains of each run file, in the order of their sections"""
    domain_bytes: dict[str, int] = Field(default_factory=dict)
    """in a corpus of parts, bytes of text by domain"""
    documents: int
    """number of documents, good and bad"""
    quarantined: dict[str, int]
    losses: tuple[FileLoss, ...] = ()
    """parts of files that could not be read"""
    documents_by_file: dict[int, int] = Field(default_factory=dict)
    """records that were read"""
    first: dict[str, BadRecord] = Field(default_factory=dict)
    """the first bad record of each reason"""
    step_cpu_seconds: dict[str, float] = Field(default_factory=dict)
    """CPU time by step of `corpora.steps`"""
    step_changes: dict[str, int] = Field(default_factory=dict)
    """documents that a step changed, by step"""

    @property
    def bad(self) -> int:
        """Return the number of bad documents that count towards `max_bad_share`."""
        return sum(n for reason, n in self.quarantined.items() if counts_as_bad(reason))


@dataclass(frozen=True)
class ScatterJob:
    """Inputs of all scatter tasks; a task gets a piece besides."""

    corpus: Store
    """the corpus's folder in the inbox"""
    staging: Store
    inputs: tuple[InputFile, ...]
    settings: IngestSettings
    shards: int

    @property
    def layout(self) -> Layout:
        """Return how documents are dealt into parts."""
        return make_layout(self.shards, self.settings.holdout_share)


def evidence_key(piece: int) -> str:
    """Return the key of a piece's bad records below the staging folder; no object without any."""
    return f"pieces/{piece:06d}-bad.jsonl"


def scatter_piece(job: ScatterJob, index: int, piece: InputPiece) -> PieceResult:
    """Stage a piece, unless its marker says that it was staged before.

    Args:
        job: what all tasks share.
        index: the piece's number.
        piece: the spans to read.

    Raises:
        InputError: a file is gone or is another one than its producer promised.
    """
    marker = f"pieces/{index:06d}.json"
    try:
        return PieceResult.model_validate_json(job.staging.read(marker))
    except FileNotFoundError:
        pass
    result = _stage(job, index, piece)
    job.staging.write(marker, result.model_dump_json().encode())
    return result


def _stage(job: ScatterJob, index: int, piece: InputPiece) -> PieceResult:
    """Stage a piece; start over without a file that changed, or without text that is not sound.

    Raises InputError for a file that is not what its producer promised, at the second reading.
    """
    moved: dict[int, str] = {}
    read_again: set[int] = set()
    damaged: dict[int, Record] = {}
    while True:
        try:
            return _stage_once(job, index, piece, moved, damaged)
        except _Retracted as error:
            damaged[error.file] = error.loss
        except InputMoved as error:
            file = job.inputs[error.file]
            if not file.sha256:
                moved[error.file] = error.reason
            elif error.file not in read_again:
                read_again.add(error.file)
            else:
                listed = ListedFile(file.name, file.size_bytes, file.sha256)
                actual = error.actual or "there is no such file"
                raise moved_file(job.corpus.url, listed, error.reason, actual) from None


class _Retracted(Exception):
    """Records were read from a part of a file that turned out to be damaged."""

    def __init__(self, file: int, loss: Record) -> None:
        super().__init__(file, loss)
        self.file, self.loss = file, loss


def _stage_once(
    job: ScatterJob,
    index: int,
    piece: InputPiece,
    moved: dict[int, str],
    damaged: dict[int, Record],
) -> PieceResult:
    pending, bad = _Pending(job.settings), _BadRecords()
    salts = make_file_salts([file.name for file in job.inputs], job.settings.seed)
    runs = documents = 0
    losses: list[FileLoss] = []
    by_file: Counter[int] = Counter()
    domains = DomainSizes(job.corpus.url) if job.settings.parts == "domain" else None

    def flush() -> None:
        nonlocal runs, pending
        of_run = () if domains is None else domains.next_run()
        with job.staging.open(run_key(index, runs), "wb") as stream:
            pending.write(job, salts, of_run, stream)
        runs, pending = runs + 1, _Pending(job.settings)

    steps = StepPipeline(job.settings.steps)
    last: tuple[int, int] = (-1, 0)
    for file, given in _records(job, piece, moved, damaged):
        if given.is_loss and last[0] == file and given.offset <= last[1]:
            raise _Retracted(file, given)
        last = file, given.offset
        record = apply_steps(steps, given, job.settings)
        documents += 1
        if record.reason:
            # It may quote what the file holds.
            record = record._replace(detail=escape_text(record.detail))
            bad.add(file, record)
        if record.is_loss:
            losses.append(_loss(file, record))
        else:
            by_file[file] += 1
        pending.add(file, record)
        if domains is not None:
            domains.add(record)
        if pending.held_bytes >= job.settings.piece_bytes:
            flush()
    if pending.texts:
        flush()
    if bad.evidence:
        job.staging.write(evidence_key(index), encode_removed(bad.evidence, job.inputs, {}))
    return PieceResult(
        runs=runs,
        domains=() if domains is None else tuple(domains.runs),
        domain_bytes={} if domains is None else domains.sizes,
        documents=documents,
        quarantined=dict(sorted(bad.reasons.items())),
        losses=tuple(losses),
        documents_by_file=by_file,
        first=bad.first,
        step_cpu_seconds=steps.cpu_seconds,
        step_changes=dict(steps.changed),
    )


class _BadRecords:
    """Bad records of a piece: how many by reason, the first of each, and some as evidence."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.first: dict[str, BadRecord] = {}
        self.evidence: list[Removed] = []

    def add(self, file: int, record: Record) -> None:
        """Count a record with a reason.

        Args:
            file: number of its file.
            record: the record.
        """
        self.reasons[record.reason] += 1
        bad = BadRecord(file=file, offset=record.offset, detail=record.detail)
        self.first.setdefault(record.reason, bad)
        if self.reasons[record.reason] <= KEPT_RECORDS:
            self.evidence.append(Removed(file, record.offset, record.reason, record.detail))


def _loss(file: int, record: Record) -> FileLoss:
    return FileLoss(
        file=file,
        offset=record.offset,
        reason=record.reason,
        lost_bytes=record.lost_bytes,
        lost_documents=record.lost_documents,
        is_cut=record.is_cut,
    )


def _records(
    job: ScatterJob, piece: InputPiece, moved: dict[int, str], damaged: dict[int, Record]
) -> Iterator[tuple[int, Record]]:
    for span in piece:
        reason = moved.get(span.file)
        if reason is not None:
            lost = span.end - span.start
            yield span.file, Record(span.start, reason=reason, lost_bytes=lost)
            continue
        file, loss = job.inputs[span.file], damaged.get(span.file)
        for record in read_span(job.corpus, file, span, job.settings, loss):
            yield span.file, record


class _Pending:
    """Buffer of the documents of the next run file, as columns."""

    def __init__(self, settings: IngestSettings) -> None:
        fuzzy = settings.fuzzy_duplicates
        self._record_bytes = _RECORD_BYTES + (0 if fuzzy is None else bands_bytes(fuzzy))
        self._columns = len(settings.metadata)
        self.held_bytes = 0
        self.texts: list[bytes] = []
        self._files: list[int] = []
        self._offsets: list[int] = []
        self._digests: list[bytes] = []
        self._domains: list[str] = []
        self._metadata: list[tuple[str | None, ...]] = []
        self._bad: list[tuple[int, str, str]] = []

    def add(self, file: int, record: Record) -> None:
        """Add a record.

        Args:
            file: number of its file.
            record: the record.
        """
        if record.reason:
            self._bad.append((len(self.texts), record.reason, record.detail))
        kept = record.fields[: self._columns]
        beside = len(record.domain) + sum(len(value) for value in kept if value)
        self.held_bytes += len(record.text) + beside + self._record_bytes
        self.texts.append(record.text)
        self._files.append(file)
        self._offsets.append(record.offset)
        self._digests.append(digest_text(record.text))
        self._domains.append(record.domain)
        self._metadata.append(kept)

    def write(
        self,
        job: ScatterJob,
        salts: npt.NDArray[np.uint64],
        domains: Sequence[str],
        stream: BinaryIO,
    ) -> None:
        """Write the run file: the sections of the layout, in its order.

        In a corpus of parts, the sections of the domains follow.

        In a section the documents are in the order in which they were added.

        Args:
            job: what all tasks share.
            salts: bits of every file of the corpus; see `make_file_salts`.
            domains: of the documents, in a corpus of parts; none in one that is a whole.
            stream: the run file.
        """
        layout, settings = job.layout, job.settings
        files = np.array(self._files, dtype=np.int32)
        offsets = np.array(self._offsets, dtype=np.int64)
        digests = np.frombuffer(b"".join(self._digests), dtype="<u8").reshape(-1, 2)
        good = np.ones(len(files), dtype=bool)
        good[[row for row, _, _ in self._bad]] = False
        # Held-out documents are chosen by their text, so equal texts are held out together.
        held = good & (digests[:, 0] < np.uint64(holdout_bound(settings.holdout_share)))
        orders = make_order_keys(salts[files], offsets)
        parts = self._choose_sections(layout, orders, held, domains)
        columns: dict[str, npt.NDArray[Any]] = {
            "file": files,
            "offset": offsets,
            "order": orders,
            "digest": digests[:, 0],
        }
        strings = self._strings(settings)
        file = SectionFile(stream, layout.first_section(len(domains)))
        # On a local disk compression costs more time than it saves; on a network it saves more.
        compression = None if job.staging.is_local else "lz4"

        def write_documents(groups: Iterator[npt.NDArray[np.int64]]) -> None:
            for rows in groups:
                chosen: dict[str, Any] = {name: values[rows] for name, values in columns.items()}
                listed = rows.tolist()
                for name, column in strings.items():
                    chosen[name] = column and [column[row] for row in listed]
                file.add_documents(chosen, [self.texts[row] for row in listed], compression)

        write_documents(group_rows(parts, layout.parts))
        for section in _digests(layout, digests, files, offsets, good):
            file.add(section)
        for section in _repeats(job, self.texts, files, offsets, np.flatnonzero(good & ~held)):
            file.add(section)
        write_documents(group_rows(parts - layout.sections, layout.shards * len(domains)))
        file.close()

    def _choose_sections(
        self,
        layout: Layout,
        orders: npt.NDArray[np.uint64],
        held: npt.NDArray[np.bool_],
        domains: Sequence[str],
    ) -> npt.NDArray[np.int64]:
        """Return the number of every document's section.

        Args:
            layout: the sections.
            orders: of the documents.
            held: which documents are held out.
            domains: of the documents, in a corpus of parts; none in one that is a whole.
        """
        parts = choose_parts(orders, layout.shards)
        parts[held] = layout.shards + choose_parts(orders[held], layout.held_parts)
        if domains:
            numbers = {name: layout.first_section(number) for number, name in enumerate(domains)}
            own = np.array([numbers[domain] for domain in self._domains], dtype=np.int64)
            parts[~held] += own[~held]
        return parts

    def _strings(self, settings: IngestSettings) -> dict[str, list[Any] | None]:
        """Return the columns of strings; None for one that is empty."""
        given = {
            "domain": self._domains if settings.domain_field else None,
            "metadata": self._metadata if settings.metadata else None,
        }
        if not self._bad:
            return given | {"reason": None, "detail": None}
        reasons: list[Any] = [None] * len(self.texts)
        details: list[Any] = [None] * len(self.texts)
        for row, reason, detail in self._bad:
            reasons[row], details[row] = reason, detail
        return given | {"reason": reasons, "detail": details}


def _digests(
    layout: Layout,
    digests: npt.NDArray[np.uint64],
    files: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    good: npt.NDArray[np.bool_],
) -> Iterator[bytes]:
    """Yield the sections of the good documents' digests, one for every part of the digests."""
    for rows in group_by_digest(digests[good, 0], layout.digest_parts):
        chosen = np.flatnonzero(good)[rows]
        yield encode_digests(digests[chosen], files[chosen], offsets[chosen])


def _repeats(
    job: ScatterJob,
    texts: list[bytes],
    files: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    trained: npt.NDArray[np.int64],
) -> Iterator[bytes]:
    """Yield the sections by which repeats among the documents to train are found."""
    layout, settings = job.layout, job.settings
    texts = [texts[row] for row in trained.tolist()]
    files, offsets = files[trained], offsets[trained]
    if settings.repeated_lines is None:
        yield from [b""] * layout.digest_parts
    else:
        yield from encode_lines(layout, texts, files, offsets, settings.repeated_lines)
    if settings.fuzzy_duplicates is None:
        yield from [b""] * layout.shards
    else:
        yield from encode_bands(layout, texts, files, offsets, settings.fuzzy_duplicates)
