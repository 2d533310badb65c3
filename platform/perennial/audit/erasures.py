"""Checks of what was erased: its tombstone, and that what it names is no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from perennial.audit.finding import Finding
from perennial.corpora.erasing.tombstone import FOLDER, Tombstone, key_of, read_tombstone
from perennial.errors import Altered, InputError
from perennial.evaluation.kept_samples import SampleList
from perennial.runs.events import Erased, Evaluated, Event, Measured, Ready, Released

if TYPE_CHECKING:
    from perennial.audit.checks import FoldedLedger
    from perennial.corpora import CorpusManifest
    from perennial.store import Store

_AGAIN = "repeat `perennial erase`, which completes it"


def with_erasures(ready: Ready, events: Sequence[Event], manifest: CorpusManifest) -> Ready:
    """Return what the ledger says of a tokenised corpus now.

    Args:
        ready: the event of its ingest.
        events: all events.
        manifest: its manifest, whose digest stands for its counts.
    """
    erased = [e for e in events if isinstance(e, Erased) and e.corpus == ready.corpus]
    if not erased:
        return ready
    return ready.model_copy(update={"digest": erased[-1].digest, "tokens": manifest.tokens})


def list_digests(events: Sequence[Event]) -> dict[str, list[str]]:
    """Return the digests that the manifests of corpora had, by corpus, as of the ledger."""
    digests: dict[str, list[str]] = {}
    for event in events:
        if isinstance(event, Ready | Erased):
            digests.setdefault(event.corpus, []).append(event.digest)
    return digests


def check_erasures(store: Store, story: FoldedLedger) -> Iterator[Finding | SampleList]:
    """Check every erasure, and yield the samples of which the ledger says that they are there.

    Args:
        store: the run's store.
        story: the folded ledger.
    """
    there = {info.key for info in store.list(FOLDER)}
    gone: set[str] = set()
    for event in story.events:
        if isinstance(event, Erased):
            key = key_of(event.corpus, event.number)
            there.discard(key)
            try:
                tombstone = read_tombstone(store, event.corpus, event.number, event.tombstone)
            except (Altered, InputError, FileNotFoundError):
                right = f"sha256 {event.tombstone[:12]}, as the ledger says"
                yield Finding(key, "is missing or altered", right)
                continue
            assert tombstone is not None
            gone |= {*tombstone.samples}
            yield from _check_gone(store, tombstone)
    for key in sorted(there):
        yield Finding(key, "the ledger has no such erasure", _AGAIN)
    for lists in _samples(story.events):
        for held in lists:
            if isinstance(held, SampleList) and held.key not in gone:
                yield held


def _check_gone(store: Store, tombstone: Tombstone) -> Iterator[Finding]:
    """Yield what an erasure removed and is there."""
    folder = f"corpora/{tombstone.corpus}"
    keys = [f"{folder}/{file.file}" for file in tombstone.removed] + [*tombstone.samples]
    for key in keys:
        if store.exists(key):
            yield Finding(key, "is erased, and is there", _AGAIN)


def _samples(events: Sequence[Event]) -> Iterator[Sequence[object]]:
    for event in events:
        if isinstance(event, Evaluated | Measured | Released):
            yield event.samples
