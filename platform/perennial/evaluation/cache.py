"""Losses document by document, and scores item by item, kept so that later ones can be paired.

`evaluations/<model>/<corpus>.parquet` holds a row a document, in the order in which held-out
documents are read: summed nats, tokens, bytes, domain. `evaluations/<model>/tasks/*.json` holds a
task's items by one metric, in lm-eval's order: digest and score.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perennial.evaluation.loss import DocumentLoss

if TYPE_CHECKING:
    from perennial.evaluation.tasks import TaskScore
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


Items = tuple[tuple[str, float], ...]
"""Digest and score of each item of a task."""


def keep_items(store: Store, model: str, score: TaskScore) -> None:
    """Keep a model's score on a task item by item, where it is known."""
    if score.items:
        store.write(_items_key(model, score), json.dumps(score.items).encode())


def kept_items(store: Store, model: str, score: TaskScore) -> Items:
    """What `keep_items` kept of another model for the same task and metric."""
    try:
        told = json.loads(store.read(_items_key(model, score)))
    except FileNotFoundError:
        return ()
    return tuple((str(digest), float(value)) for digest, value in told)


def _items_key(model: str, score: TaskScore) -> str:
    asked = hashlib.sha256(score.asked.encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{score.task}-{score.metric}-{asked}")
    return f"evaluations/{model}/tasks/{name}.json"
