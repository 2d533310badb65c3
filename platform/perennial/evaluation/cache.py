"""Losses by document and scores by item, stored so that later ones can be paired with them.

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
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from perennial.evaluation.scores import TaskScore
    from perennial.store import Store


def _key(model: str, corpus: str) -> str:
    return f"evaluations/{model}/{corpus}.parquet"


def keep_losses(store: Store, model: str, corpus: str, losses: Sequence[DocumentLoss]) -> None:
    """Store a model's losses on a corpus's held-out documents.

    Args:
        store: the run's store.
        model: folder of the checkpoint or release.
        corpus: name of the corpus.
        losses: by document, in the order in which held-out documents are read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([loss._asdict() for loss in losses]), out)
    store.write(_key(model, corpus), out.getvalue())


def kept_losses(store: Store, model: str, corpus: str) -> list[DocumentLoss] | None:
    """Return what `keep_losses` stored; None when there is nothing.

    Args:
        store: the run's store.
        model: folder of the checkpoint or release.
        corpus: name of the corpus.
    """
    import pyarrow.parquet as pq

    try:
        data = store.read(_key(model, corpus))
    except FileNotFoundError:
        return None
    return [DocumentLoss(**row) for row in pq.read_table(io.BytesIO(data)).to_pylist()]


Items = tuple[tuple[str, float], ...]
"""Digest and score of each item of a task."""


def keep_items(store: Store, model: str, score: TaskScore) -> None:
    """Store a model's scores of the single items of a task, where they are known."""
    if score.items:
        store.write(_items_key(model, score), json.dumps(score.items).encode())


def kept_items(store: Store, model: str, score: TaskScore) -> Items:
    """Return what `keep_items` stored of a model for the same task and metric; () for nothing.

    Args:
        store: the run's store.
        model: folder of the checkpoint or release.
        score: names the task and the metric.
    """
    try:
        items = parse_json(store.read(_items_key(model, score)))
        return tuple((str(digest), float(value)) for digest, value in items)
    except (FileNotFoundError, ValueError, TypeError, OverflowError):
        return ()


def _items_key(model: str, score: TaskScore) -> str:
    asked = hashlib.sha256(score.asked.encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{score.task}-{score.metric}-{asked}")
    return f"evaluations/{model}/tasks/{name}.json"
