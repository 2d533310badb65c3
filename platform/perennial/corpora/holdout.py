"""Reading the held-out documents of a tokenised corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from perennial.store import open_checked

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.corpora.manifest import CorpusManifest
    from perennial.store import Store

_COLUMNS = ("tokens", "bytes", "domain")
_ROWS_AT_ONCE = 256


class HeldOutDocument(NamedTuple):
    """A document that is never trained on.

    `tokens` `(tokens,)` are its ids with the end of the document last, `size_bytes` the UTF-8 bytes
    of its text, `domain` is "" for none.
    """

    tokens: npt.NDArray[np.unsignedinteger[Any]]
    size_bytes: int
    domain: str


def read_holdout(
    store: Store, manifest: CorpusManifest, indices: Sequence[int] | None = None
) -> Iterator[HeldOutDocument]:
    """Yield held-out documents in the order of the corpus's files, some rows at a time.

    Args:
        store: the run's store.
        manifest: the corpus's manifest.
        indices: the documents to yield, by increasing number over all files; None for all.

    Raises:
        Altered: a file is missing or has another digest than the manifest says.
    """
    # Imported here: this module is part of the package's face, which loads no pyarrow.
    import pyarrow.parquet as pq

    dtype = np.dtype(f"<u{manifest.token_bytes}")
    wanted = None if indices is None else np.asarray(indices, dtype=np.int64)
    first = 0
    for file in manifest.holdout:
        begin, first = first, first + file.documents
        if wanted is not None and not ((wanted >= begin) & (wanted < first)).any():
            continue
        key = f"corpora/{manifest.name}/{file.file}"
        with open_checked(store, key, file.sha256) as stream:
            batches = pq.ParquetFile(stream).iter_batches(_ROWS_AT_ONCE, columns=list(_COLUMNS))
            for batch in batches:
                numbers = np.arange(begin, begin + len(batch))
                begin += len(batch)
                if wanted is not None:
                    batch = batch.take(np.flatnonzero(np.isin(numbers, wanted)))
                for row in batch.to_pylist():
                    tokens = np.frombuffer(row["tokens"], dtype=dtype)
                    yield HeldOutDocument(tokens, row["bytes"], row["domain"])
