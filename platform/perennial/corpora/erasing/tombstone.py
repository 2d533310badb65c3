"""Tombstone of an erasure: what a corpus had, in counts and digests, and no text.

It is written before anything is replaced, so that an erasure that was killed is completed from it:
it holds the corpus's new manifest, and the files that the old one had and the new one has not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from perennial.corpora.manifest import CorpusManifest, StoredFile
from perennial.errors import InputError
from perennial.store import read_checked

if TYPE_CHECKING:
    from perennial.store import Store

FOLDER: Final = "tombstones"


class Tombstone(BaseModel):
    """The `number`-th erasure of a corpus, counted from 0."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    format: Literal[1] = 1
    corpus: str
    number: int
    whole: bool
    """whether nothing of the corpus is left"""
    before: str
    """digest of the manifest before it; "" of a corpus that was not tokenised"""
    manifest: CorpusManifest | None
    """the manifest after it; None of a corpus that was not tokenised"""
    documents: int
    """trained and held-out documents that were erased"""
    held_out: int = 0
    """of those, the held-out ones"""
    tokens: int
    """tokens of them in rows and in held-out documents"""
    digests: tuple[str, ...] = ()
    """of the documents, where not all of the corpus is erased"""
    rows: tuple[tuple[int, int], ...] = ()
    """first and last row of the stretches of rows that held them, by number in the corpus"""
    removed: tuple[StoredFile, ...] = Field(default=())
    """files of the corpus that are no more"""
    asked: str = ""
    """SHA-256 of the file that named the documents; "" where all of the corpus is erased"""
    inputs: tuple[str, ...] = ()
    """files with which the corpus landed that hold the documents, or may hold them"""
    samples: tuple[str, ...] = ()
    """keys of samples that are no more"""

    @property
    def key(self) -> str:
        """Return its key in the run's store."""
        return key_of(self.corpus, self.number)

    def encode(self) -> bytes:
        """Return the bytes of the object."""
        return self.model_dump_json(indent=1).encode()


def key_of(corpus: str, number: int) -> str:
    """Return the key of a tombstone."""
    return f"{FOLDER}/{corpus}/{number:04d}.json"


def digest_tombstone(data: bytes) -> str:
    """Return the digest by which an event names a tombstone."""
    return hashlib.sha256(data).hexdigest()


def read_tombstone(store: Store, corpus: str, number: int, sha256: str = "") -> Tombstone | None:
    """Return a tombstone, or None where there is none.

    Args:
        store: the run's store.
        corpus: name of the corpus.
        number: of the erasure.
        sha256: the digest that an event promised; "" for none.

    Raises:
        InputError: it cannot be read.
        Altered: it has another digest.
    """
    key = key_of(corpus, number)
    try:
        data = read_checked(store, key, sha256) if sha256 else store.read(key)
    except FileNotFoundError:
        return None
    try:
        return Tombstone.model_validate_json(data)
    except ValueError as broken:
        problem = f"it cannot be read: {' '.join(str(broken).split())[:200]}"
        raise InputError(
            f"{store.url}/{key}", "", problem, "restore it", code="tombstone-unreadable"
        ) from None


def as_stretches(rows: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return ascending numbers as the first and last of each stretch without a gap."""
    stretches: list[tuple[int, int]] = []
    for row in rows:
        if stretches and row == stretches[-1][1] + 1:
            stretches[-1] = stretches[-1][0], row
        else:
            stretches.append((row, row))
    return tuple(stretches)
