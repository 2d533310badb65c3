"""Pass 2: one shard is gathered from every run, put in order, tokenised, packed and written."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from perennial.corpora.documents import ShardDocuments, arrange
from perennial.corpora.engines import Encoder, EngineName, make_encoder
from perennial.corpora.manifest import (
    Counts,
    HoldoutFile,
    IngestSettings,
    InputFile,
    QuarantineFile,
    Shard,
    ShardResult,
    token_bytes,
)
from perennial.corpora.packing import Packer, RowFile, holdout_bytes, rows_per_group
from perennial.corpora.scatter import run_key
from perennial.corpora.staging import join, read_segment

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.corpora.tokenizer import RunTokenizer
    from perennial.store import Store

DUPLICATE = "duplicate"
_BATCH_BYTES = 1 << 20


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
    tokenizer: RunTokenizer
    engine: EngineName


def gather(job: GatherJob, shard: int) -> ShardResult:
    """Writes a shard's files, unless its marker says that they were written and they are there."""
    marker = f"shards/{shard:05d}.json"
    try:
        result = ShardResult.model_validate_json(job.staging.read(marker))
    except FileNotFoundError:
        pass
    else:
        if written(job.target, result):
            return result
    result = _gather(job, shard)
    job.staging.write(marker, result.model_dump_json().encode())
    return result


def written(target: Store, result: ShardResult) -> bool:
    """Whether the files of a shard are there with their sizes."""
    try:
        return all(target.info(f.file).size_bytes == f.size_bytes for f in result.files)
    except FileNotFoundError:
        return False


def _gather(job: GatherJob, shard: int) -> ShardResult:
    filesystem, base = job.staging.arrow()
    table = join(
        read_segment(filesystem, f"{base}/{run_key(piece, run)}", shard)
        for piece, runs in enumerate(job.runs)
        for run in range(runs)
    )
    documents = arrange(table, job.settings)
    del table
    encoder = make_encoder(job.tokenizer, job.engine)
    rows, trained = _write_rows(job, f"shard-{shard:05d}.parquet", documents, encoder)
    holdout, held = _write_holdout(job, f"holdout-{shard:05d}.parquet", documents, encoder)
    quarantine, dropped = _write_quarantine(job, f"quarantine-{shard:05d}.jsonl", documents)
    counts = trained.plus(held).plus(dropped)
    return ShardResult(shard=rows, holdout=holdout, quarantine=quarantine, counts=counts)


def _write_rows(
    job: GatherJob, key: str, documents: ShardDocuments, encoder: Encoder
) -> tuple[Shard | None, Counts]:
    length, width = job.settings.sequence_length, token_bytes(job.tokenizer.vocabulary)
    dtype = np.dtype(f"<u{width}")
    packer = Packer(length, rows_per_group(length, width), dtype)
    file = RowFile(length, width)
    tokens = 0
    for batch in _encoded(documents, documents.trained, job.tokenizer.end_of_document, encoder):
        for ids in batch:
            tokens += len(ids)
            for group in packer.add(ids):
                file.write(group)
    rest, remainder = packer.finish()
    if len(rest):
        file.write(rest)
    counts = Counts(
        documents=len(documents.trained),
        trained_documents=len(documents.trained),
        tokens=tokens,
        row_tokens=tokens - remainder,
        remainder_tokens=remainder,
        trained_bytes=int(documents.sizes[documents.trained].sum()),
        repeats=documents.repeats,
    )
    data = file.close()
    if not file.row_groups:
        return None, counts
    size, digest = _put(job.target, key, data)
    groups = tuple(file.row_groups)
    return Shard(file=key, size_bytes=size, sha256=digest, row_groups=groups), counts


def _write_holdout(
    job: GatherJob, key: str, documents: ShardDocuments, encoder: Encoder
) -> tuple[HoldoutFile | None, Counts]:
    held = documents.held_out
    if not len(held):
        return None, Counts()
    dtype = np.dtype(f"<u{token_bytes(job.tokenizer.vocabulary)}")
    batches = _encoded(documents, held, job.tokenizer.end_of_document, encoder)
    tokens = [ids.astype(dtype).tobytes() for batch in batches for ids in batch]
    sizes = documents.sizes[held].tolist()
    domains = documents.domains.take(pa.array(held)).to_pylist()
    count = sum(map(len, tokens)) // dtype.itemsize
    size, digest = _put(job.target, key, holdout_bytes(tokens, sizes, domains))
    counts = Counts(
        documents=len(held),
        held_out_documents=len(held),
        tokens=count,
        held_out_tokens=count,
        held_out_bytes=sum(sizes),
    )
    file = HoldoutFile(file=key, size_bytes=size, sha256=digest, documents=len(held))
    return file, counts


def _write_quarantine(
    job: GatherJob, key: str, documents: ShardDocuments
) -> tuple[QuarantineFile | None, Counts]:
    records = [*documents.bad, *documents.dropped]
    if not records:
        return None, Counts()
    lines = []
    for record in sorted(records, key=lambda r: (r.file, r.offset, r.reason)):
        detail = record.detail
        if record.first is not None:
            detail = f"equals {job.inputs[record.first[0]].name} at {record.first[1]}"
        line = {
            "file": job.inputs[record.file].name,
            "offset": record.offset,
            "reason": record.reason or DUPLICATE,
            "detail": detail,
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    size, digest = _put(job.target, key, "".join(lines).encode())
    counts = Counts(
        documents=len(records),
        duplicate_documents=len(documents.dropped),
        quarantined=dict(sorted(Counter(r.reason for r in documents.bad).items())),
    )
    file = QuarantineFile(file=key, size_bytes=size, sha256=digest, records=len(records))
    return file, counts


def _put(target: Store, key: str, data: bytes | pa.Buffer) -> tuple[int, str]:
    plain = data if isinstance(data, bytes) else data.to_pybytes()
    target.write(key, plain)
    return len(plain), hashlib.sha256(plain).hexdigest()


def _encoded(
    documents: ShardDocuments, chosen: npt.NDArray[np.int64], end: int, encoder: Encoder
) -> Iterator[list[npt.NDArray[Any]]]:
    """The ids of the chosen documents, each with its end, in batches of bounded size."""
    bounds = np.cumsum(documents.sizes[chosen]) // _BATCH_BYTES
    for part in np.split(chosen, np.flatnonzero(np.diff(bounds)) + 1) if len(chosen) else []:
        texts = documents.texts.take(pa.array(part)).to_pylist()
        yield [np.append(ids, np.uint32(end)) for ids in encoder.encode(texts)]
