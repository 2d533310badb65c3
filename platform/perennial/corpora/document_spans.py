"""The documents in the rows of a shard: where each stands, which it is, and what is kept of it.

A file beside every shard has a row for each stretch of a document inside one row of the shard. So a
row leads back to its documents, and a document to the rows that hold it, without a reading of the
shard; training reads the shards alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from perennial.corpora.file_list import escape_text
from perennial.store import open_checked

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from perennial.corpora.ingest.documents import StagedDocuments
    from perennial.corpora.manifest import CorpusManifest, IngestSettings
    from perennial.corpora.packers import Spans
    from perennial.store import Store

OWN_COLUMNS = ("row", "start", "tokens", "before", "file", "offset", "digest", "domain")
"""columns of every file; `corpora.metadata` may give no other one such a name"""
_NUMBERS = OWN_COLUMNS[:-1]
_ROWS_PER_GROUP = 1 << 16


class DocumentSpan(NamedTuple):
    """Stretch of a document in one row.

    row: number of the row in the corpus; start: of the span's first token in it.
    tokens: length of the span; before: tokens of the document before it.
    file, offset: where the document was read; offset as in the quarantine.
    digest: the first 8 bytes of the sha256 of its text, as hexadecimal digits.
    metadata: by column, what is kept of it, its domain too; without what it has not.
    """

    row: int
    start: int
    tokens: int
    before: int
    file: str
    offset: int
    digest: str
    metadata: dict[str, str]

    def __str__(self) -> str:
        known = ", ".join(f"{name} {escape_text(value)}" for name, value in self.metadata.items())
        return f"{self.file} at {self.offset}" + (f" ({known})" if known else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return self._asdict()


def encode_spans(
    spans: Spans, documents: StagedDocuments, settings: IngestSettings
) -> tuple[pa.Buffer, dict[str, int]]:
    """Return the bytes of the file of a shard's spans, and by column how many have metadata.

    Args:
        spans: of the shard.
        documents: of the shard, as they were packed.
        settings: say which metadata is kept.
    """
    import pyarrow as pa

    mine = documents.take(spans.document)
    numbers: dict[str, Any] = {
        "row": spans.row.astype(np.int32),
        "start": spans.start.astype(np.int32),
        "tokens": spans.tokens.astype(np.int32),
        "before": spans.before,
        "file": mine.file,
        "offset": mine.offset,
    }
    strings: dict[str, Any] = {"domain": mine.domain_column()} if settings.domain_field else {}
    columns = settings.metadata_columns
    if columns:
        strings |= dict(zip(columns, mine.metadata(len(columns)), strict=True))
    table = pa.table(numbers | {"digest": mine.digest} | strings)
    return write_spans(table), count_known(table, columns)


def write_spans(table: pa.Table) -> pa.Buffer:
    """Return the bytes of a file of spans."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    strings = [name for name in table.column_names if name not in _NUMBERS]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=_ROWS_PER_GROUP,
        compression="zstd",
        use_dictionary=strings,
        column_encoding=dict.fromkeys(_NUMBERS[:-1], "DELTA_BINARY_PACKED") | {"digest": "PLAIN"},
        write_statistics=["row"],
        store_schema=False,
    )
    return sink.getvalue()


def count_known(table: pa.Table, columns: Iterable[str]) -> dict[str, int]:
    """Return how many spans of a file have a value, by column of metadata."""
    return {column: len(table) - table[column].null_count for column in columns}


def read_spans(
    store: Store, manifest: CorpusManifest, rows: Iterable[int]
) -> Iterator[DocumentSpan]:
    """Yield what some rows of a corpus hold, in the order of the rows.

    Nothing is yielded for a corpus without such files, which a version before 0.2 ingested.

    Args:
        store: the run's store.
        manifest: the corpus's manifest.
        rows: numbers of rows in the corpus.

    Raises:
        Altered: a file is missing or has another digest than the manifest says.
        IndexError: the corpus does not have one of the rows.
    """
    wanted = np.unique(np.fromiter(rows, dtype=np.int64))
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < manifest.rows:
        raise IndexError(f"{manifest.name} has rows 0 to {manifest.rows - 1}")
    first = 0
    for shard, file in zip(manifest.shards, manifest.documents, strict=False):
        begin, first = first, first + sum(shard.row_groups)
        mine = wanted[(begin <= wanted) & (wanted < first)] - begin
        if len(mine):
            key = f"corpora/{manifest.name}/{file.file}"
            with open_checked(store, key, file.sha256) as stream:
                for span in _read_shard(stream, mine):
                    yield _describe(span, begin, manifest)


def _read_shard(stream: Any, rows: npt.NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = pq.ParquetFile(stream)
    for group in range(file.num_row_groups):
        held = file.metadata.row_group(group).column(0).statistics
        if held is None or ((held.min <= rows) & (rows <= held.max)).any():
            table = file.read_row_group(group)
            yield from table.filter(pc.is_in(table["row"], pa.array(rows, pa.int32()))).to_pylist()


def _describe(span: dict[str, Any], first_row: int, manifest: CorpusManifest) -> DocumentSpan:
    digest: int = span["digest"]
    return DocumentSpan(
        first_row + span["row"],
        span["start"],
        span["tokens"],
        span["before"],
        manifest.inputs[span["file"]].name,
        span["offset"],
        digest.to_bytes(8, "little").hex(),
        {name: value for name, value in span.items() if name not in OWN_COLUMNS[:-1] and value},
    )
