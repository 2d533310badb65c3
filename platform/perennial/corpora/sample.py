"""The first documents of a corpus: what its files hold, before anything of it is tokenised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from perennial.corpora.formats.base import FileSpan, Record, counts_as_bad
from perennial.corpora.formats.open import find_kind, read_span
from perennial.corpora.landing import LocalFile
from perennial.corpora.manifest import InputFile
from perennial.errors import InputError
from perennial.store import open_store

if TYPE_CHECKING:
    from perennial.corpora.landing import LandingFile
    from perennial.corpora.manifest import IngestSettings

FILES, RECORDS = 5, 20
"""Files that are sampled, and documents of each; of a corpus of many files the first ones."""
_MOST_BAD = 0.5
"""A run that lets so many documents be bad has said that its files begin with anything."""


def read_sample(files: Sequence[LandingFile], settings: IngestSettings) -> Iterator[Record]:
    """Yield the first records of the local files among some that are to land.

    Args:
        files: those of one corpus. Files of other stores are read when they are ingested.
        settings: how documents are found in them.
    """
    local = [file for file in files if isinstance(file, LocalFile) and file.size_bytes]
    for file in local[:FILES]:
        if find_kind(file.name) is None:
            continue
        store = open_store(str(file.path.absolute().parent))
        info = store.info(file.path.name)
        stored = InputFile(name=info.key, size_bytes=info.size_bytes, etag=info.etag)
        span = FileSpan(0, 0, info.size_bytes)
        yield from islice(read_span(store, stored, span, settings), RECORDS)


def check_sample(name: str, files: Sequence[LandingFile], settings: IngestSettings) -> None:
    """Refuse files of which no document of the first ones can be read.

    Args:
        name: of the corpus.
        files: its files.
        settings: how documents are found in them.

    Raises:
        InputError: all of them are bad; names the first one's reason.
    """
    if settings.max_bad_share >= _MOST_BAD:
        return
    records = list(read_sample(files, settings))
    bad = [record for record in records if record.reason and counts_as_bad(record.reason)]
    if not bad or len(bad) < len(records):
        return
    first = bad[0]
    what = "its first document" if len(bad) == 1 else f"none of its first {len(bad)} documents"
    cannot = "cannot be read" if len(bad) == 1 else "can be read"
    raise InputError(
        "land",
        name,
        f"{what} {cannot}: {first.reason}{f' ({first.detail})' if first.detail else ''}",
        "correct the files, or say how they are read in the section corpora",
        code="sample-unreadable",
    )
