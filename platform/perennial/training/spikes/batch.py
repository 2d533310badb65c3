"""The batch of a spike: the rows in it, and the documents that they hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from perennial.corpora import read_manifest
from perennial.corpora.document_spans import DocumentSpan, read_spans
from perennial.errors import Altered, InputError
from perennial.mixture.provenance import Origin, trace_origins

if TYPE_CHECKING:
    from perennial.store import Store
    from perennial.training.job import Job

_MOST_PLACES = 12
"""Places of a batch that a message names; a batch of many corpora has more."""
_MOST_DOCUMENTS = 4


class TracedBatch(NamedTuple):
    """Rows and documents of a batch.

    documents: spans by corpus, in the order of their rows.
    problem: why the documents are not known; "" where they are, or where none were recorded.
    """

    origins: list[Origin]
    documents: dict[str, list[DocumentSpan]]
    problem: str = ""

    def describe(self) -> str:
        """Return the rows and the first documents, as a clause."""
        text = ", ".join(_some(map(str, self.origins), _MOST_PLACES, "places"))
        spans = [str(span) for held in self.documents.values() for span in held]
        if spans:
            documents = _some(dict.fromkeys(spans), _MOST_DOCUMENTS, "documents")
            text += f", with {', '.join(documents)}"
        return f"{text} (documents unknown: {self.problem})" if self.problem else text

    def list_documents(self) -> tuple[dict[str, Any], ...]:
        """Return the JSON form of the documents, each with its corpus."""
        return tuple(
            {"corpus": corpus} | span.to_dict()
            for corpus, held in self.documents.items()
            for span in held
        )


def trace_batch(store: Store, job: Job, step: int) -> TracedBatch:
    """Return what a job trains at the step that leads to trunk step `step`.

    That its documents cannot be read is no reason to fail: `problem` has it then.
    """
    origins = trace_origins(job.mix, job.layouts, step - 1 - job.first_step)
    try:
        return TracedBatch(origins, find_documents(store, origins))
    except (InputError, Altered, OSError, ValueError) as unknown:
        return TracedBatch(origins, {}, str(unknown))


def find_documents(store: Store, origins: Iterable[Origin]) -> dict[str, list[DocumentSpan]]:
    """Return the documents that rows hold, by corpus.

    Args:
        store: the run's store.
        origins: the rows.

    Raises:
        InputError: the manifest of a corpus is missing or was altered.
        Altered: a file of it is missing or was altered.
    """
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for origin in origins:
        rows[origin.corpus] += range(origin.first, origin.last + 1)
    return {
        corpus: list(read_spans(store, read_manifest(store, corpus), wanted))
        for corpus, wanted in rows.items()
    }


def _some(names: Iterable[str], most: int, kind: str) -> list[str]:
    listed = list(names)
    if len(listed) > most:
        listed[most:] = [f"{len(listed) - most} {kind} more"]
    return listed
