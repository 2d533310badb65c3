"""Sampling of a landed corpus: bounded, and the same sample every time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perennial.corpora.formats.open import read_span
from perennial.corpora.inbox import read_landed
from perennial.corpora.ingest.partition import digest_text, holdout_bound, plan_pieces
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.errors import InputMoved

if TYPE_CHECKING:
    from perennial.store import Store

_PARTS = 64


def sample_texts(
    inbox: Store, name: str, settings: IngestSettings, max_bytes: int
) -> Iterator[str]:
    """Yield documents of evenly spread parts of a corpus.

    Held-out documents and unreadable parts are left out.

    Args:
        inbox: the store that the corpus landed in.
        name: the corpus's name.
        settings: how documents are found in it.
        max_bytes: bytes of text to yield, roughly.
    """
    landed = read_landed(inbox, name)
    inputs = [InputFile(name=f.name, size_bytes=f.size_bytes, etag=f.etag) for f in landed.files]
    part_bytes = max(1, landed.total_bytes // _PARTS, max_bytes // _PARTS)
    spans = [span for piece in plan_pieces(inputs, part_bytes) for span in piece]
    parts = min(_PARTS, len(spans))
    chosen = [spans[part * len(spans) // parts] for part in range(parts)]
    bound, corpus = holdout_bound(settings.holdout_share), inbox.sub(name)
    taken = 0
    for number, span in enumerate(chosen, start=1):
        # What short parts leave of their share goes to those after them.
        limit = max_bytes * number // len(chosen)
        try:
            for record in read_span(corpus, inputs[span.file], span, settings):
                if taken >= limit:
                    break
                digest = int.from_bytes(digest_text(record.text)[:8], "little")
                if not record.reason and digest >= bound:
                    taken += len(record.text)
                    yield record.text.decode()
        except InputMoved:
            continue
