"""Staged documents of one part in their final order, and the record of those removed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.corpora.counts import CONTAMINATED, DUPLICATE, NEAR_DUPLICATE
from perennial.corpora.ingest.spill import SCHEMA

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.corpora.manifest import InputFile

_BATCH_BYTES = 1 << 19


class Removed(NamedTuple):
    """A record that is neither trained nor held out."""

    file: int
    offset: int
    reason: str
    detail: str


@dataclass
class StagedDocuments:
    """Documents of a part in the order in which they are trained, as columns.

    The texts are not copied: they stay in the buffers, or memory-mapped files, that were read.
    """

    file: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    digest: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]
    """UTF-8 bytes of every text"""
    removed: list[Removed]
    """what was quarantined, and what was removed since"""
    _chunk: npt.NDArray[np.int64]
    _start: npt.NDArray[np.int64]
    _buffers: list[memoryview]
    _domains: pa.ChunkedArray
    _metadata: pa.ChunkedArray
    _row: npt.NDArray[np.int64]
    """the row of every document among the domains and the metadata"""

    def __len__(self) -> int:
        return len(self.file)

    def texts(self) -> list[memoryview]:
        """Return the texts, as UTF-8."""
        ends = (self._start + self.sizes).tolist()
        places = zip(self._chunk.tolist(), self._start.tolist(), ends, strict=True)
        return [self._buffers[chunk][start:end] for chunk, start, end in places]

    def domains(self) -> list[str]:
        """Return the domains; "" for none."""
        return [domain or "" for domain in self.domain_column().to_pylist()]

    def domain_column(self) -> pa.ChunkedArray:
        """Return the domains as strings; "" or null for none."""
        return self._domains.take(pa.array(self._row))

    def metadata(self, columns: int) -> list[pa.Array]:
        """Return the metadata by column: strings, null for none.

        Args:
            columns: the number of them; a document of a format that knows none has no values.
        """
        values = self._metadata.take(pa.array(self._row)).combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(values), 0)
        # What has no values must not be asked for one.
        padded = pc.if_else(
            pc.equal(lengths, columns), values, pa.scalar([None] * columns, values.type)
        )
        return [pc.list_element(padded, column) for column in range(columns)]

    def joined(self, parts: Sequence[StagedDocuments]) -> StagedDocuments:
        """Return the documents of several parts of these."""
        if not parts:
            return self.take(slice(0))

        def join(name: str) -> Any:
            return np.concatenate([getattr(part, name) for part in parts])

        names = ("file", "offset", "digest", "sizes", "_chunk", "_start", "_row")
        return replace(self, **{name: join(name) for name in names})

    def take(self, rows: Any) -> StagedDocuments:
        """Return the documents of some rows (numbers, a mask or a slice).

        The record of what was removed is shared with the result, so that it stays complete.
        """
        return StagedDocuments(
            file=self.file[rows],
            offset=self.offset[rows],
            digest=self.digest[rows],
            sizes=self.sizes[rows],
            removed=self.removed,
            _chunk=self._chunk[rows],
            _start=self._start[rows],
            _buffers=self._buffers,
            _domains=self._domains,
            _metadata=self._metadata,
            _row=self._row[rows],
        )

    def without(self, reason: str, details: dict[int, str]) -> StagedDocuments:
        """Return the documents but those of some rows, and record these as removed.

        Args:
            reason: why they are removed.
            details: by row, what to record besides the reason.
        """
        return self.without_any({reason: details})

    def without_any(self, reasons: Mapping[str, dict[int, str]]) -> StagedDocuments:
        """Return the documents but those of some rows; of two reasons the first one counts.

        Args:
            reasons: what to record, by reason and row.
        """
        if not any(reasons.values()):
            return self
        keep = np.ones(len(self), dtype=bool)
        for reason, details in reasons.items():
            for row, detail in details.items():
                if keep[row]:
                    place = int(self.file[row]), int(self.offset[row])
                    self.removed.append(Removed(*place, reason, detail))
                keep[row] = False
        return self.take(keep)

    def with_texts(self, texts: Mapping[int, bytes]) -> StagedDocuments:
        """Return the documents with other texts.

        Args:
            texts: UTF-8, by row.
        """
        if not texts:
            return self
        result, rows = self.take(slice(None)), list(texts)
        result._buffers = [*self._buffers, *(memoryview(text) for text in texts.values())]
        result._chunk, result._start = self._chunk.copy(), self._start.copy()
        result.sizes = self.sizes.copy()
        result._chunk[rows] = np.arange(len(self._buffers), len(result._buffers))
        result._start[rows] = 0
        result.sizes[rows] = [*map(len, texts.values())]
        return result

    def batches(self) -> Iterator[StagedDocuments]:
        """Yield all documents in batches of bounded size, or of one document."""
        bounds = np.cumsum(self.sizes) // _BATCH_BYTES
        cuts = [0, *(np.flatnonzero(np.diff(bounds)) + 1).tolist(), len(self)]
        for start, end in pairwise(cuts):
            if end > start:
                yield self.take(slice(start, end))

    def find_rows(self, file: npt.NDArray[Any], offset: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the rows `(positions,)` of the documents at some positions; -1 for none.

        Args:
            file: number of the file of every position `(positions,)`.
            offset: offset in that file `(positions,)`.
        """
        return find_places(self.file, self.offset, file, offset)


def find_places(
    file: npt.NDArray[Any],
    offset: npt.NDArray[Any],
    asked_file: npt.NDArray[Any],
    asked_offset: npt.NDArray[Any],
) -> npt.NDArray[np.int64]:
    """Return the rows `(asked,)` of some positions among others; -1 for one that is none of them.

    Args:
        file: number of the file of every position to search `(positions,)`.
        offset: offset in that file `(positions,)`.
        asked_file: number of the file of every position to look for `(asked,)`.
        asked_offset: offset in that file `(asked,)`.
    """
    files, offsets = np.concatenate([file, asked_file]), np.concatenate([offset, asked_offset])
    asked = np.arange(len(files)) >= len(file)
    order = np.lexsort((asked, offsets, files))
    # Sorted by position, those that are asked for come right after the one that they ask for.
    last = np.maximum.accumulate(np.where(asked[order], 0, np.arange(len(order))))
    before = order[last]
    equal = (files[before] == files[order]) & (offsets[before] == offsets[order]) & ~asked[before]
    rows = np.empty(len(files), dtype=np.int64)
    rows[order] = np.where(equal, before, -1)
    return rows[len(file) :]


@dataclass
class _Columns:
    parts: dict[str, list[npt.NDArray[Any]]] = field(
        default_factory=lambda: {name: [] for name in ("file", "offset", "order", "digest")}
    )

    def joined(self, name: str) -> npt.NDArray[Any]:
        empty = np.empty(0, dtype=SCHEMA.field(name).type.to_pandas_dtype())
        return np.concatenate([empty, *self.parts[name]])


def collect_documents(batches: Iterable[pa.RecordBatch]) -> StagedDocuments:
    """Return the good documents of staged batches, sorted; the batches may come in any order."""
    columns, removed = _Columns(), list[Removed]()
    buffers, domains = list[memoryview](), [pa.array([], pa.string())]
    metadata = [pa.array([], SCHEMA.field("metadata").type)]
    chunks, starts, sizes, good = [], [], [], []
    none = np.empty(0, dtype=np.int64)
    for number, batch in enumerate(batches):
        bounds = np.frombuffer(batch["text"].buffers()[1], dtype=np.int64)
        bounds = bounds[batch["text"].offset :][: len(batch) + 1]
        buffers.append(memoryview(batch["text"].buffers()[2] or b""))
        domains.append(batch["domain"])
        metadata.append(batch["metadata"])
        for name, parts in columns.parts.items():
            parts.append(batch[name].to_numpy())
        chunks.append(np.full(len(batch), number))
        starts.append(bounds[:-1])
        sizes.append(np.diff(bounds))
        good.append(batch["reason"].is_null().to_numpy(zero_copy_only=False))
        removed += _quarantined(batch)
    documents = StagedDocuments(
        file=columns.joined("file"),
        offset=columns.joined("offset"),
        digest=columns.joined("digest"),
        sizes=np.concatenate([none, *sizes]),
        removed=removed,
        _chunk=np.concatenate([none, *chunks]),
        _start=np.concatenate([none, *starts]),
        _buffers=buffers,
        _domains=pa.chunked_array(domains),
        _metadata=pa.chunked_array(metadata),
        _row=np.arange(sum(map(len, sizes))),
    )
    order = np.lexsort((documents.offset, documents.file, columns.joined("order")))
    return documents.take(order[np.concatenate([none == 0, *good])[order]])


def _quarantined(batch: pa.RecordBatch) -> list[Removed]:
    if batch["reason"].null_count == len(batch):
        return []
    bad = batch.filter(batch["reason"].is_valid())
    return [Removed(**row) for row in bad.select(list(Removed._fields)).to_pylist()]


def encode_removed(
    removed: Sequence[Removed], inputs: Sequence[InputFile], lost: Mapping[tuple[int, int], int]
) -> bytes:
    """Return the quarantine file of removed records: JSON lines in the order of their positions.

    Args:
        removed: the records.
        inputs: the files of the corpus.
        lost: documents that were lost, roughly, by file and offset of the record for their part.
    """
    lines = []
    for record in sorted(removed):
        line: dict[str, Any] = {
            "file": inputs[record.file].name,
            "offset": record.offset,
            "reason": record.reason,
            "detail": record.detail,
        }
        if (record.file, record.offset) in lost:
            line["lost_documents"] = lost[record.file, record.offset]
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def count_removed(
    removed: Sequence[Removed], lost: Mapping[tuple[int, int], int]
) -> dict[str, Any]:
    """Return the fields of `Counts` that say what was removed; `lost` as for `encode_removed`."""
    reasons = Counter(record.reason for record in removed)
    return {
        "documents": len(removed),
        "duplicate_documents": reasons.pop(DUPLICATE, 0),
        "near_duplicate_documents": reasons.pop(NEAR_DUPLICATE, 0),
        "contaminated_documents": reasons.pop(CONTAMINATED, 0),
        "quarantined": dict(sorted(reasons.items())),
        "lost_documents_estimate": sum(
            lost.get((record.file, record.offset), 0) for record in removed
        ),
    }
