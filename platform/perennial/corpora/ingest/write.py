"""Shards and held-out files: documents are gathered from every run, put in order and written."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.corpora.encoders import EncoderName, make_encoder, stored_type
from perennial.corpora.ingest.decontaminate import load_contamination
from perennial.corpora.ingest.documents import (
    Removed,
    StagedDocuments,
    collect_documents,
    record_lines,
    removed_counts,
)
from perennial.corpora.ingest.exact_dedup import without_dropped
from perennial.corpora.ingest.near_dedup import BandHasher, NearDuplicateIndex, write_index
from perennial.corpora.ingest.partition import Layout, holdout_bound
from perennial.corpora.ingest.read import run_key
from perennial.corpora.ingest.spill import decode_documents, read_sections
from perennial.corpora.manifest import (
    CONTAMINATED,
    NEAR_DUPLICATE,
    Counts,
    HoldoutFile,
    IngestSettings,
    InputFile,
    QuarantineFile,
    Shard,
    ShardResult,
)
from perennial.corpora.packing import Packer, RowFile, holdout_bytes, rows_per_group

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from perennial.corpora.tokenizer import RunTokenizer
    from perennial.store import Store


@dataclass(frozen=True)
class GatherJob:
    """Everything a gather task needs besides its shard's number."""

    target: Store
    """the corpus's folder in the run's store"""
    staging: Store
    runs: tuple[int, ...]
    """run files of each piece"""
    inputs: tuple[InputFile, ...]
    settings: IngestSettings
    layout: Layout
    tokenizer: RunTokenizer
    encoder: EncoderName
    holdout_bound: int
    """documents whose digest is below it are held out"""
    drops: tuple[int, ...] = ()
    """parts of the digests that list documents to drop"""
    earlier: tuple[str, ...] = ()
    """names of the earlier corpora"""


def gather_shard(job: GatherJob, shard: int) -> ShardResult:
    """Writes a shard's files, unless its marker says that they were written and they are there."""
    return _once(job, f"shards/{shard:05d}.json", shard, _gather)


def _once(
    job: GatherJob, marker: str, part: int, do: Callable[[GatherJob, int], ShardResult]
) -> ShardResult:
    try:
        result = ShardResult.model_validate_json(job.staging.read(marker))
    except FileNotFoundError:
        pass
    else:
        if has_files(job.target, result):
            return result
    result = do(job, part)
    job.staging.write(marker, result.model_dump_json().encode())
    return result


def has_files(target: Store, result: ShardResult) -> bool:
    """Whether the files of a shard are there with their sizes."""
    try:
        return all(target.info(f.file).size_bytes == f.size_bytes for f in result.files)
    except FileNotFoundError:
        return False


def _gather(job: GatherJob, shard: int) -> ShardResult:
    documents = _documents(job, [shard])
    # Where no document is below the usual bound, the lowest one of the shards is held out.
    documents = documents.take(documents.digest >= np.uint64(job.holdout_bound))
    key = f"shard-{shard:05d}.parquet"
    rows, counts = _write_rows(job, key, documents)
    quarantine = _write_record(job, f"quarantine-{shard:05d}.jsonl", documents.removed)
    counts = counts.plus(Counts(**removed_counts(documents.removed)))
    return ShardResult(shard=rows, quarantine=quarantine, counts=counts)


def write_holdout(job: GatherJob, part: int) -> ShardResult:
    """Writes a part of the held-out documents, and what near duplicates of them are found by.

    Done is done, as in `gather_shard`.
    """
    return _once(job, f"held/{part:05d}.json", part, _hold)


def _hold(job: GatherJob, part: int) -> ShardResult:
    layout = job.layout
    sections = [layout.shards + part]
    usual = holdout_bound(job.settings.holdout_share)
    if part == 0 and job.holdout_bound > usual:
        sections = [*range(layout.shards), *sections]
    documents = _documents(job, sections)
    documents = documents.take(documents.digest < np.uint64(job.holdout_bound))
    held: list[npt.NDArray[Any]] = []
    encoder, end = make_encoder(job.tokenizer, job.encoder), job.tokenizer.end_of_document
    screen = BandHasher(job.tokenizer) if job.settings.near_duplicates else None
    keys: list[npt.NDArray[np.uint64]] = []
    for batch in documents.batches():
        ids = encoder.encode_documents(batch.texts())
        held += np.split(ids, np.flatnonzero(ids == end)[:-1] + 1)
        keys += [screen.keys(ids)] if screen else []
    if screen:
        write_index(job.staging, part, documents, keys)
    removed = documents.removed if sections == [layout.shards + part] else []
    return _written_holdout(job, part, documents, held, removed)


def _written_holdout(
    job: GatherJob,
    part: int,
    documents: StagedDocuments,
    held: list[npt.NDArray[Any]],
    removed: list[Removed],
) -> ShardResult:
    quarantine = _write_record(job, f"quarantine-holdout-{part:05d}.jsonl", removed)
    counts = Counts(**removed_counts(removed))
    if not held:
        return ShardResult(quarantine=quarantine, counts=counts)
    key, sizes, tokens = (
        f"holdout-{part:05d}.parquet",
        documents.sizes.tolist(),
        sum(map(len, held)),
    )
    data = holdout_bytes([ids.tobytes() for ids in held], sizes, documents.domains())
    size, digest = _put(job.target, key, data)
    mine = Counts(
        documents=len(held),
        held_out_documents=len(held),
        tokens=tokens,
        held_out_tokens=tokens,
        held_out_bytes=sum(sizes),
    )
    file = HoldoutFile(file=key, size_bytes=size, sha256=digest, documents=len(held))
    return ShardResult(holdout=file, quarantine=quarantine, counts=mine.plus(counts))


def _documents(job: GatherJob, sections: list[int]) -> StagedDocuments:
    """The documents of sections of all runs, without the equal ones that are to be dropped."""
    places = (
        (run_key(piece, run), section)
        for piece, runs in enumerate(job.runs)
        for run in range(runs)
        for section in sections
    )
    found = read_sections(job.staging, places)
    documents = collect_documents(batch for section in found for batch in decode_documents(section))
    return without_dropped(documents, job.staging, job.drops, sections, job.inputs, job.earlier)


def _write_rows(
    job: GatherJob, key: str, documents: StagedDocuments
) -> tuple[Shard | None, Counts]:
    sums: dict[str, Any] = defaultdict(int)
    groups = _row_groups(job, documents, sums)
    first = next(groups, None)
    if first is None:
        return None, Counts(**sums)
    with job.target.open(key, "wb") as stream:
        file = RowFile(stream, first.shape[1], first.itemsize)
        for group in chain([first], groups):
            file.write(group)
        size, digest = file.close()
    shard = Shard(file=key, size_bytes=size, sha256=digest, row_groups=tuple(file.row_groups))
    return shard, Counts(**sums)


def _row_groups(
    job: GatherJob, documents: StagedDocuments, sums: dict[str, Any]
) -> Iterator[npt.NDArray[Any]]:
    """Groups of rows `(rows, sequence)`, each valid until the next; `sums` are fields of Counts."""
    length, dtype = job.settings.sequence_length, stored_type(job.tokenizer)
    packer = Packer(length, rows_per_group(length, dtype.itemsize), dtype)
    for batch, ids in _encoded(job, documents):
        sums["documents"] += len(batch)
        sums["trained_bytes"] += int(batch.sizes.sum())
        sums["tokens"] += len(ids)
        yield from packer.add(ids)
    rest, remainder = packer.finish()
    sums["trained_documents"] = sums["documents"]
    sums["row_tokens"] = sums["tokens"] - remainder
    sums["remainder_tokens"] = remainder
    if len(rest):
        yield rest


def _encoded(
    job: GatherJob, documents: StagedDocuments
) -> Iterator[tuple[StagedDocuments, npt.NDArray[Any]]]:
    """Batches of documents to train and their ids, an end after each document."""
    settings = job.settings
    encoder = make_encoder(job.tokenizer, job.encoder)
    near = _Near(job, settings.near_duplicates) if settings.near_duplicates else None
    banned = settings.decontaminate
    contamination = load_contamination(job.staging, banned) if banned else None
    for batch in documents.batches():
        if contamination:
            batch = batch.without(CONTAMINATED, contamination.found(batch))
        if len(batch):
            ids = encoder.encode_documents(batch.texts())
            yield near.filtered(batch, ids) if near else (batch, ids)


class _Near:
    """Takes near duplicates of held-out documents out of batches."""

    def __init__(self, job: GatherJob, similarity: float) -> None:
        parts = job.layout.held_parts
        self._neighbours = NearDuplicateIndex(job.staging, parts, job.inputs, similarity)
        self._screen, self._end = BandHasher(job.tokenizer), job.tokenizer.end_of_document

    def filtered(
        self, batch: StagedDocuments, ids: npt.NDArray[Any]
    ) -> tuple[StagedDocuments, npt.NDArray[Any]]:
        found = self._neighbours.found(batch, self._screen.keys(ids))
        if found:
            parts = np.split(ids, np.flatnonzero(ids == self._end)[:-1] + 1)
            kept = [part for row, part in enumerate(parts) if row not in found]
            ids = np.concatenate([ids[:0], *kept])
        return batch.without(NEAR_DUPLICATE, found), ids


def _write_record(job: GatherJob, key: str, removed: list[Removed]) -> QuarantineFile | None:
    if not removed:
        return None
    size, digest = _put(job.target, key, record_lines(removed, job.inputs))
    return QuarantineFile(file=key, size_bytes=size, sha256=digest, records=len(removed))


def _put(target: Store, key: str, data: bytes | pa.Buffer) -> tuple[int, str]:
    plain = data if isinstance(data, bytes) else data.to_pybytes()
    target.write(key, plain)
    return len(plain), hashlib.sha256(plain).hexdigest()
