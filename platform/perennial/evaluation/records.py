"""Losses document by document, kept in the store so that later ones can be paired with them.

`evaluations/<model>/<corpus>.parquet` holds a row a document, in the order in which held-out
documents are read: summed nats, tokens, bytes, domain.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perennial.evaluation.loss import DocumentLoss

if TYPE_CHECKING:
    from perennial.store import Store


def _key(model: str, corpus: str) -> str:
    return f"evaluations/{model}/{corpus}.parquet"


def keep_losses(store: Store, model: str, corpus: str, losses: Sequence[DocumentLoss]) -> None:
    """Keep the losses of the checkpoint or release `model` on a corpus's held-out documents."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([loss._asdict() for loss in losses]), out)
    store.write(_key(model, corpus), out.getvalue())


def kept_losses(store: Store, model: str, corpus: str) -> list[DocumentLoss] | None:
    """What `keep_losses` kept; None when there is nothing."""
    import pyarrow.parquet as pq

    try:
        data = store.read(_key(model, corpus))
    except FileNotFoundError:
        return None
    return [DocumentLoss(**row) for row in pq.read_table(io.BytesIO(data)).to_pylist()]
