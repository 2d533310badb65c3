"""The first documents of a corpus: what its files hold and how much, before it is tokenised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from perennial.corpora.formats.base import FileSpan, Record, counts_as_bad
from perennial.corpora.formats.open import find_kind, read_span
from perennial.corpora.landing import LocalFile, StoredLandingFile
from perennial.corpora.manifest import InputFile
from perennial.errors import InputError
from perennial.store import open_store

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from perennial.corpora.landing import LandingFile
    from perennial.corpora.manifest import IngestSettings

FILES, RECORDS = 5, 20
"""Files that are sampled, and documents of each; of a corpus of many files the first ones."""
_MOST_BAD = 0.5
"""A run that lets so many documents be bad has said that its files begin with anything."""

_BYTES_PER_TOKEN, _FEWEST_BYTES_PER_TOKEN = 4, 2
"""of text where the tokenizer is still to be trained: about, and in scripts of three bytes a
letter"""
_PLAIN_MARGIN, _COMPRESSED_MARGIN = 2, 4
"""Times that there may be more text in files than their first documents and their sizes say."""


def read_sample(files: Sequence[LandingFile], settings: IngestSettings) -> Iterator[Record]:
    """Yield the first records of the local files among some that are to land.

    Args:
        files: those of one corpus. Files of other stores are read when they are ingested.
        settings: how documents are found in them.
    """
    for _, records in sample_files([f for f in files if isinstance(f, LocalFile)], settings):
        yield from records


def sample_files(
    files: Sequence[LandingFile], settings: IngestSettings
) -> Iterator[tuple[LandingFile, list[Record]]]:
    """Yield the first files with their first records, at most `RECORDS` of each.

    Args:
        files: those of one corpus, of this machine or of stores.
        settings: how documents are found in them.
    """
    for file in [file for file in files if file.size_bytes][:FILES]:
        if find_kind(file.name) is None:
            continue
        if isinstance(file, StoredLandingFile):
            store, key = file.store, file.key
        else:
            assert isinstance(file, LocalFile)
            store, key = open_store(str(file.path.absolute().parent)), file.path.name
        info = store.info(key)
        stored = InputFile(name=info.key, size_bytes=info.size_bytes, etag=info.etag)
        span = FileSpan(0, 0, info.size_bytes)
        yield file, list(islice(read_span(store, stored, span, settings), RECORDS))


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


@dataclass(frozen=True)
class TokenEstimate:
    """The tokens of a corpus, as a sample of it says.

    Attributes:
        lengths: tokens of each document of the sample.
        tokens: about how many all files hold.
        at_most: how many they may hold where the sample is no good one.
    """

    lengths: tuple[int, ...]
    tokens: int
    at_most: int


def estimate_tokens(
    files: Sequence[LandingFile], settings: IngestSettings, encoder: Tokenizer | None
) -> TokenEstimate | None:
    """Return the tokens that files hold, by their first documents; None where none can be read.

    Args:
        files: those of one corpus, of text.
        settings: how documents are found in them.
        encoder: counts tokens; None where the tokenizer is still to be trained.
    """
    texts: list[bytes] = []
    sampled_bytes, text_bytes, most_bytes = 0, 0.0, 0.0
    for file, records in sample_files(files, settings):
        texts += [record.text for record in records if not record.reason]
        size, margin = _text_size(file, records)
        sampled_bytes += file.size_bytes
        text_bytes += size
        most_bytes += size * margin
    if not texts:
        return None
    all_bytes = sum(file.size_bytes for file in files)
    if all_bytes > sampled_bytes:  # the others are taken to be as those of the sample
        text_bytes *= all_bytes / sampled_bytes
        most_bytes = max(most_bytes * all_bytes / sampled_bytes, _PLAIN_MARGIN * text_bytes)
    read = sum(map(len, texts))
    if encoder is None:
        lengths = tuple(max(1, len(text) // _BYTES_PER_TOKEN) for text in texts)
        highest = read / _FEWEST_BYTES_PER_TOKEN
    else:
        lengths = tuple(len(own.ids) for own in encoder.encode_batch([t.decode() for t in texts]))
        highest = sum(lengths)
    ends = len(texts)  # a token behind each document
    return TokenEstimate(
        lengths,
        round(text_bytes * (sum(lengths) + ends) / read),
        round(most_bytes * (highest + ends) / read),
    )


def _text_size(file: LandingFile, records: Sequence[Record]) -> tuple[float, int]:
    """Return the bytes of text in a file, and how many times more there may be."""
    read = sum(len(record.text) for record in records)
    if len(records) < RECORDS:
        return read, 1  # that is all of it
    kind = find_kind(file.name)
    assert kind is not None
    stretch, last = kind.expansion, records[-1]
    margin = _PLAIN_MARGIN if stretch == 1 else _COMPRESSED_MARGIN
    if kind.format.byte_offsets and last.offset > 0:
        # What lies between the documents, such as other fields of a line, is no text.
        return file.size_bytes * stretch * (read - len(last.text)) / last.offset, margin
    return float(file.size_bytes * stretch), margin
