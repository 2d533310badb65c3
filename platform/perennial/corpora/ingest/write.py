"""Last passes: documents are gathered from all run files, sorted, tokenised and written."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.corpora.counts import (
    CONTAMINATED,
    DUPLICATE,
    FUZZY_DUPLICATE,
    NEAR_DUPLICATE,
    SPECIAL_TOKEN,
    Counts,
)
from perennial.corpora.document_spans import encode_spans
from perennial.corpora.encoders import (
    Encoder,
    EncoderName,
    make_encoder,
    split_documents,
    stored_type,
)
from perennial.corpora.fill_in_the_middle import MiddleFiller, find_fill_tokens
from perennial.corpora.ingest.decontaminate import load_contamination
from perennial.corpora.ingest.documents import (
    Removed,
    StagedDocuments,
    collect_documents,
    count_removed,
    encode_removed,
)
from perennial.corpora.ingest.exact_dedup import Drop, drops_key, read_drops
from perennial.corpora.ingest.fuzzy_dedup import DROPS_KEY
from perennial.corpora.ingest.losses import FileLoss
from perennial.corpora.ingest.near_dedup import (
    BandHasher,
    NearDuplicateIndex,
    Signatures,
    write_index,
)
from perennial.corpora.ingest.partition import Layout, ShardSource, holdout_bound
from perennial.corpora.ingest.repeated_lines import cut_lines
from perennial.corpora.ingest.spill import decode_documents, read_sections, run_key
from perennial.corpora.manifest import (
    DocumentsFile,
    HoldoutFile,
    IngestSettings,
    InputFile,
    QuarantineFile,
    Shard,
    ShardResult,
)
from perennial.corpora.packers import Packer, make_packer
from perennial.corpora.packing import RowFile, add_begins, holdout_bytes
from perennial.corpora.special_tokens import HoldsSpecialToken

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from perennial.corpora.tokenizer import RunTokenizer
    from perennial.store import Store


@dataclass(frozen=True)
class GatherJob:
    """Inputs of all tasks that write shards or held-out files; a task gets its number besides."""

    target: Store
    """the corpus's folder in the run's store"""
    staging: Store
    runs: tuple[int, ...]
    """number of run files, by piece"""
    domains: tuple[tuple[tuple[str, ...], ...], ...]
    """in a corpus of parts, the domains of each run file, by piece"""
    shards: tuple[ShardSource, ...]
    """the documents of each shard"""
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
    losses: tuple[FileLoss, ...] = ()
    """parts of files that could not be read"""

    @cached_property
    def lost(self) -> dict[tuple[int, int], int]:
        """Return the documents that were lost, by file and offset of the record for their part."""
        return {(loss.file, loss.offset): loss.lost_documents or 0 for loss in self.losses}

    def shard_places(self, shard: int) -> Iterator[tuple[str, int | range]]:
        """Yield the places of a shard's documents, as `read_sections` takes them."""
        its = self.shards[shard]
        for piece, runs in enumerate(self.runs):
            for run in range(runs):
                first = 0
                if its.part is not None:
                    domains = self.domains[piece][run]
                    if its.part not in domains:
                        continue
                    first = self.layout.first_section(domains.index(its.part))
                yield run_key(piece, run), range(first + its.first, first + its.end)

    def held_places(self, part: int) -> Iterator[tuple[str, int | range]]:
        """Yield the places of a part of the held-out documents."""
        for piece, runs in enumerate(self.runs):
            for run in range(runs):
                yield run_key(piece, run), self.layout.shards + part


def gather_shard(job: GatherJob, shard: int) -> ShardResult:
    """Write a shard's files, unless its marker says that they were written and they exist.

    Args:
        job: what all tasks share.
        shard: the shard's number.
    """
    return _run_once(job, f"shards/{shard:05d}.json", shard, _write_shard)


def _run_once(
    job: GatherJob, marker: str, part: int, write: Callable[[GatherJob, int], ShardResult]
) -> ShardResult:
    try:
        result = ShardResult.model_validate_json(job.staging.read(marker))
    except FileNotFoundError:
        pass
    else:
        if has_files(job.target, result):
            return result
    result = write(job, part)
    job.staging.write(marker, result.model_dump_json().encode())
    return result


def has_files(target: Store, result: ShardResult) -> bool:
    """Return whether the files of a shard exist with their sizes.

    Args:
        target: the corpus's folder in the run's store.
        result: what was written.
    """
    try:
        return all(target.info(f.file).size_bytes == f.size_bytes for f in result.files)
    except FileNotFoundError:
        return False


def _write_shard(job: GatherJob, shard: int) -> ShardResult:
    source = job.shards[shard]
    dealt = range(source.first, source.end)
    documents = _read_documents(job, job.shard_places(shard), dealt)
    # Documents below the usual bound were dealt apart. Where there were none, the bound is raised
    # by one document, which was dealt to a shard and must not be trained.
    documents = documents.take(documents.digest >= np.uint64(job.holdout_bound))
    cut = Counts()
    if job.settings.repeated_lines is not None:
        lists = job.layout.digest_parts
        documents, cut = cut_lines(documents, job.staging, lists, dealt)
    key = f"shard-{shard:05d}.parquet"
    rows, spans, counts = _write_rows(job, key, documents)
    quarantine = _write_quarantine(job, f"quarantine-{shard:05d}.jsonl", documents.removed)
    counts = counts.plus(Counts(**count_removed(documents.removed, job.lost))).plus(cut)
    return ShardResult(
        shard=rows, documents=spans, quarantine=quarantine, part=source.part, counts=counts
    )


def write_holdout(job: GatherJob, part: int) -> ShardResult:
    """Write a part of the held-out documents, and the index of their near duplicates.

    Nothing is written twice, as in `gather_shard`.

    Args:
        job: what all tasks share.
        part: the number of the part.
    """
    return _run_once(job, f"index/{part:05d}.json", part, _write_held)


def _write_held(job: GatherJob, part: int) -> ShardResult:
    layout, recorded = job.layout, 0
    usual = holdout_bound(job.settings.holdout_share)
    if part == 0 and job.holdout_bound > usual:
        # A raised bound means that the one held-out document was dealt to a shard.
        numbers = range(len(job.shards))
        places = chain.from_iterable([*map(job.shard_places, numbers), job.held_places(part)])
        documents = _read_documents(job, places, range(layout.shards + 1))
        # What was removed from the shards' sections is recorded with the shards.
        recorded = len(documents.removed)
    else:
        dealt = range(layout.shards + part, layout.shards + part + 1)
        documents = _read_documents(job, job.held_places(part), dealt)
    documents = documents.take(documents.digest < np.uint64(job.holdout_bound))
    held: list[npt.NDArray[Any]] = []
    encoder, end = make_encoder(job.tokenizer, job.encoder), job.tokenizer.end_of_document
    hasher = BandHasher(job.tokenizer, encoder) if job.settings.near_duplicates else None
    signatures: list[Signatures] = []
    spelled: dict[int, str] = {}
    first = 0
    for batch in documents.batches():
        ids, left_out = _encode_batch(encoder, batch)
        spelled |= {first + row: detail for row, detail in left_out.items()}
        first += len(batch)
        texts = [text for row, text in enumerate(batch.texts()) if row not in left_out]
        if texts:
            held += split_documents(ids, end)
            signatures += [hasher.hash_documents(texts, ids)] if hasher else []
    documents = documents.without(SPECIAL_TOKEN, spelled)
    if hasher:
        write_index(job.staging, part, documents, signatures)
    return _write_holdout_files(job, part, documents, held, documents.removed[recorded:])


def _encode_batch(
    encoder: Encoder, batch: StagedDocuments
) -> tuple[npt.NDArray[Any], dict[int, str]]:
    """Return the ids of a batch, and by row what documents are left out of them for."""
    texts = batch.texts()
    try:
        return encoder.encode_documents(texts), {}
    except HoldsSpecialToken as held:
        kept = [text for row, text in enumerate(texts) if row not in held.tokens]
        details = {row: f"is encoded as {token}" for row, token in held.tokens.items()}
        return encoder.encode_documents(kept), details


def _write_holdout_files(
    job: GatherJob,
    part: int,
    documents: StagedDocuments,
    held: list[npt.NDArray[Any]],
    removed: list[Removed],
) -> ShardResult:
    quarantine = _write_quarantine(job, f"quarantine-holdout-{part:05d}.jsonl", removed)
    counts = Counts(**count_removed(removed, job.lost))
    if not held:
        return ShardResult(quarantine=quarantine, counts=counts)
    key, sizes = f"holdout-{part:05d}.parquet", _text_sizes(job, documents).tolist()
    tokens = sum(map(len, held))
    data = holdout_bytes([ids.tobytes() for ids in held], sizes, documents.domains())
    size, digest = _write_file(job.target, key, data)
    mine = Counts(
        documents=len(held),
        held_out_documents=len(held),
        tokens=tokens,
        held_out_tokens=tokens,
        held_out_bytes=sum(sizes),
    )
    file = HoldoutFile(file=key, size_bytes=size, sha256=digest, documents=len(held))
    return ShardResult(holdout=file, quarantine=quarantine, counts=mine.plus(counts))


def _text_sizes(job: GatherJob, documents: StagedDocuments) -> npt.NDArray[np.int64]:
    """Return the UTF-8 bytes of documents' texts; 0 for those that are ids already."""
    return documents.sizes if job.settings.tokens is None else np.zeros_like(documents.sizes)


def _read_documents(
    job: GatherJob, places: Iterable[tuple[str, int | range]], dealt: range
) -> StagedDocuments:
    """Return the documents of sections of all run files, without those that repeat others.

    Args:
        job: what all tasks share.
        places: of the sections.
        dealt: numbers that their documents were dealt to.
    """
    buffers = read_sections(job.staging, places)
    documents = collect_documents(batch for data in buffers for batch in decode_documents(data))
    staging, lists = job.staging, [drops_key(part) for part in job.drops]

    def find(keys: list[str], describe: Callable[[Drop], str]) -> dict[int, str]:
        return read_drops(documents, staging, [(key, dealt) for key in keys], describe)

    def describe_equal(drop: Drop) -> str:
        if drop.earlier >= 0:
            return f"equals a document of corpus {job.earlier[drop.earlier]}"
        return f"equals {job.inputs[drop.first_file].name} at {drop.first_offset}"

    def describe_similar(drop: Drop) -> str:
        return f"similar to {job.inputs[drop.first_file].name} at {drop.first_offset}"

    similar = [DROPS_KEY] if job.settings.fuzzy_duplicates is not None else []
    return documents.without_any(
        {DUPLICATE: find(lists, describe_equal), FUZZY_DUPLICATE: find(similar, describe_similar)}
    )


def _write_rows(
    job: GatherJob, key: str, documents: StagedDocuments
) -> tuple[Shard | None, DocumentsFile | None, Counts]:
    sums: dict[str, Any] = defaultdict(int)
    end = job.tokenizer.end_of_document
    packer = make_packer(job.settings, key, stored_type(job.tokenizer), end)
    packed: list[StagedDocuments] = []
    groups = _row_groups(job, packer, documents, packed, sums)
    first = next(groups, None)
    if first is None:
        return None, None, Counts(**sums)
    with job.target.open(key, "wb") as stream:
        file = RowFile(stream, first.shape[1], first.itemsize)
        for group in chain([first], groups):
            file.write(group)
        size, digest = file.close()
    shard = Shard(file=key, size_bytes=size, sha256=digest, row_groups=tuple(file.row_groups))
    spans = packer.list_spans()
    data, known = encode_spans(spans, documents.joined(packed), job.settings)
    key = key.replace("shard-", "documents-")
    size, digest = _write_file(job.target, key, data)
    held = DocumentsFile(
        file=key, size_bytes=size, sha256=digest, spans=len(spans.row), known=known
    )
    return shard, held, Counts(**sums)


def _row_groups(
    job: GatherJob,
    packer: Packer,
    documents: StagedDocuments,
    packed: list[StagedDocuments],
    sums: dict[str, Any],
) -> Iterator[npt.NDArray[Any]]:
    """Yield groups of rows `(rows, sequence)`, valid until the next one, and sum up the counts.

    Args:
        job: what all tasks share.
        packer: makes the rows.
        documents: the documents of the shard.
        packed: takes those that are trained, in the order in which the packer gets them.
        sums: fields of Counts, complete when all groups were taken.
    """
    end, begin = job.tokenizer.end_of_document, job.tokenizer.begin_of_document
    fill = _make_filler(job)
    for batch, ids in _encode_documents(job, documents, sums):
        ids, filled = fill(batch, ids)
        ids = add_begins(ids, end, begin)
        sums["documents"] += len(batch)
        sums["trained_bytes"] += int(_text_sizes(job, batch).sum())
        sums["tokens"] += len(ids)
        sums["filled_documents"] += filled
        packed.append(batch)
        yield from packer.add(ids)
    yield from packer.finish()
    sums["trained_documents"] = sums["documents"]
    sums["row_tokens"] = sums["tokens"] - packer.remainder
    sums["padding_tokens"] = packer.padding
    sums["remainder_tokens"] = packer.remainder
    sums["cut_documents"] = packer.cut_documents


def _make_filler(
    job: GatherJob,
) -> Callable[[StagedDocuments, npt.NDArray[Any]], tuple[npt.NDArray[Any], int]]:
    """Return what moves the middles of documents; it returns their ids and how many it changed."""
    settings = job.settings
    if settings.fill_in_the_middle is None:
        return lambda batch, ids: (ids, 0)
    tokens = find_fill_tokens(job.tokenizer, settings.fill_in_the_middle)
    filler = MiddleFiller(
        settings.fill_in_the_middle,
        tokens,
        settings.seed,
        # A begin of a document takes a place of its row as well.
        settings.sequence_length - (job.tokenizer.begin_of_document is not None),
        job.tokenizer.end_of_document,
    )
    encoder = make_encoder(job.tokenizer, job.encoder)
    return lambda batch, ids: filler.apply(batch.texts(), batch.digest, ids, encoder)


def _encode_documents(
    job: GatherJob, documents: StagedDocuments, sums: dict[str, Any]
) -> Iterator[tuple[StagedDocuments, npt.NDArray[Any]]]:
    """Yield batches of documents to train and their ids, an end after every document.

    Args:
        job: what all tasks share.
        documents: the documents of the shard.
        sums: fields of Counts; what is counted here is complete when all batches were taken.
    """
    settings = job.settings
    encoder = make_encoder(job.tokenizer, job.encoder)
    near = _NearDuplicateFilter(job, settings.near_duplicates) if settings.near_duplicates else None
    banned = settings.decontaminate
    contamination = load_contamination(job.staging, banned) if banned else None
    for batch in documents.batches():
        if contamination:
            batch = batch.without(CONTAMINATED, contamination.search(batch))
        if len(batch):
            ids, spelled = _encode_batch(encoder, batch)
            batch = batch.without(SPECIAL_TOKEN, spelled)
            if len(batch):
                yield near.apply(batch, ids) if near else (batch, ids)
    if near:
        sums["partly_compared_documents"] = near.partly_compared


class _NearDuplicateFilter:
    """Filter that removes near duplicates of held-out documents from batches."""

    def __init__(self, job: GatherJob, similarity: float) -> None:
        parts = job.layout.held_parts
        self._index = NearDuplicateIndex(job.staging, parts, job.inputs, similarity)
        encoder = make_encoder(job.tokenizer, job.encoder)
        self._hasher, self._end = BandHasher(job.tokenizer, encoder), job.tokenizer.end_of_document

    @property
    def partly_compared(self) -> int:
        """Return how many documents were compared with some of those that share text alone."""
        return self._index.partly_compared

    def apply(
        self, batch: StagedDocuments, ids: npt.NDArray[Any]
    ) -> tuple[StagedDocuments, npt.NDArray[Any]]:
        """Return a batch and its ids without near duplicates, which are recorded as removed."""
        signatures = self._hasher.hash_documents(batch.texts(), ids)
        duplicates = self._index.search(batch, signatures)
        if duplicates:
            parts = split_documents(ids, self._end)
            kept = [part for row, part in enumerate(parts) if row not in duplicates]
            ids = np.concatenate([ids[:0], *kept])
        return batch.without(NEAR_DUPLICATE, duplicates), ids


def _write_quarantine(job: GatherJob, key: str, removed: list[Removed]) -> QuarantineFile | None:
    if not removed:
        return None
    size, digest = _write_file(job.target, key, encode_removed(removed, job.inputs, job.lost))
    return QuarantineFile(file=key, size_bytes=size, sha256=digest, records=len(removed))


def _write_file(target: Store, key: str, data: bytes | pa.Buffer) -> tuple[int, str]:
    """Write a file and return its bytes and their sha256."""
    plain = data if isinstance(data, bytes) else data.to_pybytes()
    target.write(key, plain)
    return len(plain), hashlib.sha256(plain).hexdigest()
