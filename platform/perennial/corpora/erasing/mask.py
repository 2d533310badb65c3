"""Erase documents of a tokenised corpus: padding takes their place, rows keep their numbers (I2).

What is replaced is written beside it under another name, so that the corpus is as it was until the
new manifest is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from perennial.corpora.document_spans import count_known, write_spans
from perennial.corpora.erasing.selection import Matcher, digest_bytes, digest_digits
from perennial.corpora.erasing.tombstone import Tombstone, as_stretches
from perennial.corpora.formats.token_ids import STORED
from perennial.corpora.holdout import read_holdout
from perennial.corpora.manifest import (
    CorpusManifest,
    CorpusPart,
    DocumentsFile,
    HoldoutFile,
    QuarantineFile,
    Shard,
    StoredFile,
)
from perennial.corpora.packing import RowFile, holdout_bytes
from perennial.store import open_checked, read_checked
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from perennial.corpora.tokenizer import RunTokenizer
    from perennial.store import Store

F = TypeVar("F", bound=StoredFile)


@dataclass
class ErasedDocuments:
    """The documents of a corpus that are erased.

    documents, tokens: of trained ones, by shard; tokens are those in rows.
    rows: numbers of the rows that held them, in the corpus.
    digests: of all.
    held: numbers of the held-out ones, in the order in which they are read.
    held_tokens, held_bytes: of them.
    records: numbers of the records of quarantine files, by file.
    files: the corpus's files that they were read from; None where that is not known of one.
    """

    documents: dict[int, int] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    spans: dict[int, npt.NDArray[np.bool_]] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    digests: dict[str, None] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)
    held_tokens: int = 0
    held_bytes: int = 0
    records: dict[str, set[int]] = field(default_factory=dict)
    files: dict[str, None] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Return the number of documents, trained and held out."""
        return sum(self.documents.values()) + len(self.held)

    def as_tombstone(
        self,
        manifest: CorpusManifest,
        removed: Sequence[StoredFile],
        after: CorpusManifest | None = None,
    ) -> Tombstone:
        """Return the tombstone of these documents.

        Args:
            manifest: of the corpus as it is.
            removed: its files that are no more.
            after: the manifest that takes its place.
        """
        # Of a held-out document the file is not kept.
        inputs = [its.name for its in manifest.inputs] if self.held else [*self.files]
        return Tombstone(
            corpus=manifest.name,
            number=manifest.erasures,
            whole=False,
            before=manifest.digest,
            manifest=after,
            documents=self.count,
            held_out=len(self.held),
            tokens=sum(self.tokens.values()) + self.held_tokens,
            digests=tuple(self.digests),
            rows=as_stretches(sorted(self.rows)),
            removed=tuple(_plain(file) for file in removed),
            inputs=tuple(inputs),
        )

    @property
    def is_empty(self) -> bool:
        """Return whether there is nothing to erase."""
        return not self.count and not self.records


def find_documents(
    store: Store, manifest: CorpusManifest, tokenizer: RunTokenizer, matcher: Matcher
) -> ErasedDocuments:
    """Find documents in the rows, among the held-out ones and in the quarantine; reads only.

    Raises:
        Altered: a file of the corpus is missing or damaged.
    """
    erased = ErasedDocuments()
    first = 0
    for number, (shard, file) in enumerate(zip(manifest.shards, manifest.documents, strict=False)):
        table = _read_table(store, manifest, file)
        chosen = matcher.match(table)
        if chosen.any():
            _note(erased, number, first, manifest, table, chosen)
        first += sum(shard.row_groups)
    _find_held_out(store, manifest, tokenizer, matcher, erased)
    for bad in manifest.quarantine:
        for index, record in enumerate(_records(store, manifest, bad)):
            if matcher.matches_place(str(record.get("file")), int(record.get("offset", -1))):
                erased.records.setdefault(bad.file, set()).add(index)
                erased.files[str(record["file"])] = None
    return erased


def _note(
    erased: ErasedDocuments,
    shard: int,
    first_row: int,
    manifest: CorpusManifest,
    table: pa.Table,
    chosen: npt.NDArray[np.bool_],
) -> None:
    mine = table.filter(chosen)
    places = np.stack([mine["file"].to_numpy(), mine["offset"].to_numpy()], axis=1)
    erased.spans[shard] = chosen
    erased.documents[shard] = len(np.unique(places, axis=0))
    erased.tokens[shard] = int(mine["tokens"].to_numpy().sum())
    erased.rows += (np.unique(mine["row"].to_numpy()) + first_row).tolist()
    digests = np.unique(mine["digest"].to_numpy()).tolist()
    erased.digests |= dict.fromkeys(map(digest_digits, digests))
    names = [manifest.inputs[number].name for number in np.unique(places[:, 0]).tolist()]
    erased.files |= dict.fromkeys(names)


def _find_held_out(
    store: Store,
    manifest: CorpusManifest,
    tokenizer: RunTokenizer,
    matcher: Matcher,
    erased: ErasedDocuments,
) -> None:
    decoder = tokenizer.build() if manifest.settings.tokens is None else None
    for number, document in enumerate(read_holdout(store, manifest)):
        ids = document.tokens[:-1]
        if decoder is None:
            text = ids.astype(STORED).tobytes()
        else:
            text = decoder.decode(ids.tolist(), skip_special_tokens=False).encode()
        digest = digest_bytes(text)
        if matcher.matches_held_out(digest, document.domain):
            erased.held.append(number)
            erased.held_tokens += len(document.tokens)
            erased.held_bytes += document.size_bytes
            erased.digests[digest_digits(digest)] = None


def _read_table(store: Store, manifest: CorpusManifest, file: DocumentsFile) -> pa.Table:
    import pyarrow.parquet as pq

    with open_checked(store, f"corpora/{manifest.name}/{file.file}", file.sha256) as stream:
        return pq.read_table(stream)


def _records(
    store: Store, manifest: CorpusManifest, file: QuarantineFile
) -> Iterator[dict[str, Any]]:
    data = read_checked(store, f"corpora/{manifest.name}/{file.file}", file.sha256)
    return (parse_json(line) for line in data.splitlines())


def mask(store: Store, manifest: CorpusManifest, erased: ErasedDocuments) -> Tombstone:
    """Write the files of a corpus again without some documents; return the tombstone to be written.

    Nothing that the corpus has is changed or removed.
    """
    number = manifest.erasures
    writer = _Writer(store, manifest, number)
    shards, documents = list(manifest.shards), list(manifest.documents)
    for index, chosen in erased.spans.items():
        table = _read_table(store, manifest, documents[index])
        shards[index] = writer.write_rows(shards[index], table.filter(chosen))
        documents[index] = writer.write_spans(documents[index], table.filter(~chosen))
    holdout = writer.write_holdout(erased.held) if erased.held else manifest.holdout
    quarantine = tuple(
        writer.write_records(file, erased.records[file.file])
        if file.file in erased.records
        else file
        for file in manifest.quarantine
    )
    after = manifest.model_copy(
        update={
            "shards": tuple(shards),
            "documents": tuple(documents),
            "holdout": tuple(holdout),
            "quarantine": quarantine,
            "parts": _parts(manifest, erased),
            "counts": _counts(manifest, erased),
            "erasures": number + 1,
        }
    ).sealed()
    kept = {file.file for file in after.files}
    removed = [file for file in manifest.files if file.file not in kept]
    return erased.as_tombstone(manifest, removed, after)


def bury(manifest: CorpusManifest) -> Tombstone:
    """Return the tombstone of a whole corpus, whose rows keep their numbers."""
    number, counts = manifest.erasures, manifest.counts
    documents = counts.trained_documents + counts.held_out_documents
    tokens = counts.row_tokens + counts.held_out_tokens
    after = manifest.model_copy(
        update={
            "documents": (),
            "holdout": (),
            "quarantine": (),
            "digests": (),
            "parts": tuple(part.model_copy(update={"documents": 0}) for part in manifest.parts),
            "counts": counts.model_copy(
                update={
                    "trained_documents": 0,
                    "row_tokens": 0,
                    "padding_tokens": counts.padding_tokens + counts.row_tokens,
                    "held_out_documents": 0,
                    "held_out_tokens": 0,
                    "held_out_bytes": 0,
                    "erased_documents": counts.erased_documents + documents,
                    "erased_tokens": counts.erased_tokens + tokens,
                }
            ),
            "erasures": number + 1,
            "erased": True,
        }
    ).sealed()
    return Tombstone(
        corpus=manifest.name,
        number=number,
        whole=True,
        before=manifest.digest,
        manifest=after,
        documents=documents,
        held_out=counts.held_out_documents,
        tokens=tokens,
        rows=((0, manifest.rows - 1),) if manifest.rows else (),
        removed=tuple(_plain(file) for file in manifest.files),
    )


def _plain(file: StoredFile) -> StoredFile:
    return StoredFile(file=file.file, size_bytes=file.size_bytes, sha256=file.sha256)


def _counts(manifest: CorpusManifest, erased: ErasedDocuments) -> Any:
    counts, tokens = manifest.counts, sum(erased.tokens.values())
    return counts.model_copy(
        update={
            "trained_documents": counts.trained_documents - sum(erased.documents.values()),
            "row_tokens": counts.row_tokens - tokens,
            "padding_tokens": counts.padding_tokens + tokens,
            "held_out_documents": counts.held_out_documents - len(erased.held),
            "held_out_tokens": counts.held_out_tokens - erased.held_tokens,
            "held_out_bytes": counts.held_out_bytes - erased.held_bytes,
            "erased_documents": counts.erased_documents + erased.count,
            "erased_tokens": counts.erased_tokens + tokens + erased.held_tokens,
        }
    )


def _parts(manifest: CorpusManifest, erased: ErasedDocuments) -> tuple[CorpusPart, ...]:
    """Return the parts with the documents that are left of each; a shard has rows of one part."""
    if not manifest.parts:
        return ()
    ends = np.cumsum([part.rows for part in manifest.parts])
    firsts = np.cumsum([0, *(sum(shard.row_groups) for shard in manifest.shards)])
    lost = np.zeros(len(manifest.parts), dtype=np.int64)
    for shard, documents in erased.documents.items():
        lost[np.searchsorted(ends, firsts[shard], side="right")] += documents
    return tuple(
        part.model_copy(update={"documents": part.documents - int(count)})
        for part, count in zip(manifest.parts, lost, strict=True)
    )


class _Writer:
    """Writes files of a corpus again, each under a name of its own for this erasure."""

    def __init__(self, store: Store, manifest: CorpusManifest, number: int) -> None:
        self._store = store
        self._manifest = manifest
        self._folder = store.sub(f"corpora/{manifest.name}")
        self._mark = f"-erased-{number:04d}"

    def _name(self, file: str) -> str:
        stem, _, suffix = file.rpartition(".")
        return f"{stem.partition('-erased-')[0]}{self._mark}.{suffix}"

    def _write(self, file: F, data: bytes, **more: Any) -> F:
        name = self._name(file.file)
        self._folder.write(name, data)
        digest = hashlib.sha256(data).hexdigest()
        written = {"file": name, "size_bytes": len(data), "sha256": digest}
        return file.model_copy(update=written | more)

    def write_rows(self, shard: Shard, spans: pa.Table) -> Shard:
        """Write a shard with ends of documents in place of the tokens of spans."""
        import pyarrow.parquet as pq

        its, end = self._manifest, self._manifest.end_of_document
        dtype, length = np.dtype(f"<u{its.token_bytes}"), its.sequence_length
        row = spans["row"].to_numpy().astype(np.int64)
        start = row * length + spans["start"].to_numpy()
        stop = start + spans["tokens"].to_numpy()
        name, first = self._name(shard.file), 0
        with (
            open_checked(self._store, f"corpora/{its.name}/{shard.file}", shard.sha256) as source,
            self._folder.open(name, "wb") as sink,
        ):
            file = pq.ParquetFile(source)
            written = RowFile(sink, length, its.token_bytes)
            for group in range(file.num_row_groups):
                column = file.read_row_group(group)[0].combine_chunks()
                rows = np.frombuffer(column.buffers()[1], dtype)[: len(column) * length].copy()
                last = first + len(rows)
                for index in np.flatnonzero((start < last) & (stop > first)):
                    rows[max(0, start[index] - first) : stop[index] - first] = end
                written.write(rows.reshape(-1, length))
                first = last
            size, digest = written.close()
        return shard.model_copy(update={"file": name, "size_bytes": size, "sha256": digest})

    def write_spans(self, file: DocumentsFile, left: pa.Table) -> DocumentsFile:
        """Write a file of spans with those that are left."""
        known = count_known(left, self._manifest.settings.metadata_columns)
        return self._write(file, write_spans(left).to_pybytes(), spans=len(left), known=known)

    def write_holdout(self, erased: list[int]) -> Iterator[HoldoutFile]:
        """Yield the held-out files without some documents; a file without any is no more."""
        gone, first = set(erased), 0
        for file in self._manifest.holdout:
            numbers = range(first, first + file.documents)
            first += file.documents
            if gone.isdisjoint(numbers):
                yield file
                continue
            left = [number for number in numbers if number not in gone]
            if left:
                documents = list(read_holdout(self._store, self._manifest, left))
                data = holdout_bytes(
                    [document.tokens.tobytes() for document in documents],
                    [document.size_bytes for document in documents],
                    [document.domain for document in documents],
                )
                yield self._write(file, data.to_pybytes(), documents=len(left))

    def write_records(self, file: QuarantineFile, erased: set[int]) -> QuarantineFile:
        """Write a quarantine file with the reason alone of some records."""
        records = enumerate(_records(self._store, self._manifest, file))
        kept = (_reason(record) if index in erased else record for index, record in records)
        lines = (json.dumps(record, ensure_ascii=False) for record in kept)
        data = "".join(f"{line}\n" for line in lines).encode()
        return self._write(file, data)


def _reason(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("reason", "lost_documents") if key in record}
