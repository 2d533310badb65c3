"""Readers of the contents of one file of the store, streamed in bounded memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from perennial.corpora.file_list import ListedFile, decode_list
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from perennial.store import Store

_CHUNK_BYTES = 1 << 20
_DOCUMENTS_AT_ONCE = 256


@dataclass(frozen=True)
class ShardContents:
    """Training rows in a Parquet file, according to its footer."""

    row_groups: tuple[int, ...]
    row_bytes: int


@dataclass(frozen=True)
class HoldoutContents:
    """Held-out documents in a Parquet file; `token_bytes` is the size of all their tokens."""

    documents: int
    token_bytes: int
    text_bytes: int


@dataclass(frozen=True)
class QuarantineContents:
    """Records of a quarantine file by reason, and the documents that they say were lost."""

    reasons: Counter[str]
    lost_documents: int


@dataclass(frozen=True)
class DocumentsContents:
    """Spans of documents in the rows of a shard, and the tokens that they hold."""

    spans: int
    tokens: int


@dataclass(frozen=True)
class MetricsContents:
    """Training steps in a checkpoint's metrics.

    runs: (first, last) of every run of consecutive steps.
    batch_tokens: the different sizes of their batches, skipped batches aside.
    skipped: steps whose batch was skipped.
    """

    runs: tuple[tuple[int, int], ...]
    batch_tokens: frozenset[int]
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class FileListContents:
    """List of the files of a corpus that landed."""

    files: tuple[ListedFile, ...]


Contents = (
    ShardContents
    | DocumentsContents
    | HoldoutContents
    | QuarantineContents
    | MetricsContents
    | FileListContents
)
Reader = Callable[[BinaryIO], Contents]


@dataclass(frozen=True)
class FileRead:
    """Result of reading a file.

    size_bytes: None when the file is missing.
    unreadable: the reason why its contents cannot be read; empty when they can.
    """

    size_bytes: int | None = None
    sha256: str = ""
    contents: Contents | None = None
    unreadable: str = ""


def read_file(store: Store, key: str, reader: Reader | None) -> FileRead:
    """Return the size and digest of a file, and its contents where a reader is given.

    Args:
        store: the run's store.
        key: of the file.
        reader: parses the file's contents; None to compute the digest only.
    """
    try:
        with store.open(key) as stream:
            size, sha256 = _digest(stream)
            if reader is None:
                return FileRead(size, sha256)
            stream.seek(0)
            try:
                return FileRead(size, sha256, reader(stream))
            except (ConnectionError, PermissionError):
                raise
            except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
                # pyarrow's errors are ValueErrors and OSErrors, and broken JSON is a ValueError.
                return FileRead(size, sha256, unreadable=" ".join(str(error).split())[:200])
    except FileNotFoundError:
        return FileRead()


def _digest(stream: BinaryIO) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


def read_shard(stream: BinaryIO) -> ShardContents:
    """Return the row groups and the row width of a training shard, from its footer."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(stream)
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return ShardContents(tuple(groups), file.schema_arrow.field("tokens").type.byte_width)


def read_documents(stream: BinaryIO) -> DocumentsContents:
    """Return the numbers of spans and tokens of the file beside a training shard."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file, tokens = pq.ParquetFile(stream), 0
    for batch in file.iter_batches(columns=["tokens"]):
        tokens += pc.sum(batch["tokens"]).as_py() or 0
    return DocumentsContents(file.metadata.num_rows, tokens)


def read_holdout(stream: BinaryIO) -> HoldoutContents:
    """Return the numbers of documents, tokens and bytes of a held-out file."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    documents = tokens = texts = 0
    file = pq.ParquetFile(stream)
    for batch in file.iter_batches(_DOCUMENTS_AT_ONCE, columns=["tokens", "bytes"]):
        documents += batch.num_rows
        tokens += pc.sum(pc.binary_length(batch["tokens"])).as_py() or 0
        texts += pc.sum(batch["bytes"]).as_py() or 0
    return HoldoutContents(documents, tokens, texts)


def read_quarantine(stream: BinaryIO) -> QuarantineContents:
    """Return the number of records of a quarantine file by reason, and the documents lost."""
    reasons: Counter[str] = Counter()
    lost = 0
    for record in _lines(stream):
        reasons[record["reason"]] += 1
        lost += int(record.get("lost_documents", 0))
    return QuarantineContents(reasons, lost)


def read_metrics(stream: BinaryIO) -> MetricsContents:
    """Return the steps of a metrics file, in its order."""
    runs: list[tuple[int, int]] = []
    sizes: set[int] = set()
    skipped: list[int] = []
    for row in _lines(stream):
        step = int(row["step"])
        if tokens := int(row["batch_tokens"]):
            sizes.add(tokens)
        else:
            skipped.append(step)
        if runs and step == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], step)
        else:
            runs.append((step, step))
    return MetricsContents(tuple(runs), frozenset(sizes), tuple(skipped))


def read_list(stream: BinaryIO) -> FileListContents:
    """Return the list of a corpus's files."""
    return FileListContents(tuple(decode_list(stream.read())))


def _lines(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    return (parse_json(line) for line in stream)
