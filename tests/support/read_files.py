"""Reading of one file as the ingest reads it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from perennial.corpora.formats.base import FileSpan, Record
from perennial.corpora.formats.open import read_span
from perennial.corpora.manifest import IngestSettings, InputFile
from perennial.store import open_store


def read_file(
    path: Path, settings: IngestSettings, content: bytes | None = None, cuts: tuple[int, ...] = ()
) -> list[Record]:
    """Return the records of a file, read in parts that begin at the cuts.

    Args:
        path: the file.
        settings: how documents are found in it.
        content: what is written into it first; None for a file that is there.
        cuts: bytes at which parts begin.
    """
    if content is not None:
        path.write_bytes(content)
    store = open_store(path.parent)
    info = store.info(path.name)
    file = InputFile(name=path.name, size_bytes=info.size_bytes, etag=info.etag)
    spans = [FileSpan(0, a, b) for a, b in pairwise([0, *cuts, info.size_bytes])]
    return [record for span in spans for record in read_span(store, file, span, settings)]


def summary(records: list[Record]) -> list[tuple[int, str]]:
    """Return of each record its offset, and its text or the reason why it has none."""
    return [(r.offset, r.reason or r.text.decode()) for r in records]
