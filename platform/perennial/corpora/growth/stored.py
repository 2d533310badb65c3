"""Tokenizers that grew from the run's first one, in its store: each by the corpus that brought it.

`tokenizer/grown/<corpus>/` holds tokenizer.json, growth.json and the manifest, which is written
last (invariant I6). All have the ids of the first tokenizer, and each those of its ancestors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from perennial.corpora.growth.extend import (
    Asked,
    Extension,
    OwnIds,
    extend_from_sample,
    extend_with,
    extend_with_own,
)
from perennial.corpora.inbox import LandedCorpus
from perennial.corpora.ingest.sample import check_sampled, sample_texts
from perennial.corpora.tokenizer import (
    FIRST_TOKENIZER,
    GROWN,
    RunTokenizer,
    build_tokenizer,
    load_tokenizer,
)
from perennial.corpora.tokenizer_training import cut_long_runs

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings
    from perennial.store import Store

SAMPLE_BYTES = 16 << 20
"""bytes of a corpus's text over which merges are learned"""


class Growth(BaseModel):
    """A growth of a tokenizer: what was asked for, and its effect on the sample.

    asked: entries asked for, the tokens, or the ids of the corpus's own.
    first: id of the first new entry; `entries` of them follow each other.
    unreachable: texts of new entries that no word ends as, in the vocabulary's characters.
    tokens_before, tokens_after: of the sample, of `size_bytes` bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    asked: Asked
    before: str
    first: int
    entries: int
    unreachable: tuple[str, ...]
    tokens_before: int
    tokens_after: int
    size_bytes: int

    @classmethod
    def of(cls, extension: Extension, asked: Asked, before: str) -> Growth:
        """Return the record of an extension of the tokenizer of a fingerprint."""
        return cls(
            asked=asked,
            before=before,
            first=extension.first,
            entries=len(extension.entries),
            unreachable=extension.unreachable,
            tokens_before=extension.tokens_before,
            tokens_after=extension.tokens_after,
            size_bytes=extension.size_bytes,
        )

    def describe(self) -> str:
        """Return a sentence on what the entries save, or hold."""
        if isinstance(self.asked, OwnIds):
            return f"{self.entries:,} entries from id {self.first:,} on, for ids of its own"
        lost = len(self.unreachable)
        saved = 1 - self.tokens_after / self.tokens_before if self.tokens_before else 0.0
        counts = (self.tokens_before, self.tokens_after)
        before, after = (f"{count / max(1, self.size_bytes):.3f}" for count in counts)
        return (
            f"{self.entries:,} entries from id {self.first:,} on: {before} tokens per byte become "
            f"{after} on a sample of {self.size_bytes / 1e6:.1f} MB, {saved:.0%} fewer"
            + (f"; {lost:,} of the entries only lead to others" if lost else "")
        )


def grown_folder(corpus: str) -> str:
    """Return the key of the folder of the tokenizer that a corpus brings."""
    return f"{GROWN}/{corpus}"


def extend_for(
    tokenizer_json: str,
    inbox: Store,
    landed: LandedCorpus,
    asked: Asked,
    settings: IngestSettings,
    sample_bytes: int = SAMPLE_BYTES,
) -> Extension:
    """Return a tokenizer with entries for a landed corpus.

    Args:
        tokenizer_json: text of the tokenizer.json that grows.
        inbox: the store that the corpus landed in.
        landed: the corpus.
        asked: entries to learn over a sample of it, the tokens to add, or its own ids.
        settings: how documents are found in it.
        sample_bytes: size of the sample.
    """
    if isinstance(asked, OwnIds):
        return extend_with_own(tokenizer_json, landed.name, asked)
    if not isinstance(asked, int):
        return extend_with(tokenizer_json, asked)
    texts = cut_long_runs(sample_texts(inbox, landed, settings, sample_bytes))
    return extend_from_sample(tokenizer_json, texts, asked)


def grow_tokenizer(
    store: Store,
    inbox: Store,
    landed: LandedCorpus,
    asked: Asked,
    before: RunTokenizer,
    settings: IngestSettings,
) -> RunTokenizer:
    """Return the tokenizer that a corpus brings; it is made once.

    Where no entry would make its text shorter, that is the one before.

    Args:
        store: the run's store, which gets it.
        inbox: the store that the corpus landed in.
        landed: the corpus.
        asked: as for `extend_for`.
        before: the tokenizer that grows.
        settings: how documents are found in the corpus.

    Raises:
        InputError: the tokenizer cannot grow, a token is no word, or a sampled file is not what its
            producer promised.
    """
    folder = grown_folder(landed.name)
    if store.exists(f"{folder}/manifest.json"):
        known = read_growth(store, landed.name)
        if (known.asked, known.before) == (asked, before.fingerprint):
            return load_tokenizer(store, folder)
        store.remove(folder)
    if not isinstance(asked, OwnIds):
        check_sampled(inbox, landed, SAMPLE_BYTES)
    extension = extend_for(before.json, inbox, landed, asked, settings)
    if not extension.entries:
        return before
    growth = Growth.of(extension, asked, before.fingerprint)
    tokenizer = _grown(extension, before)
    store.write(f"{folder}/tokenizer.json", tokenizer.json.encode())
    store.write(f"{folder}/growth.json", growth.model_dump_json(indent=1).encode())
    store.create(f"{folder}/manifest.json", tokenizer.manifest.model_dump_json(indent=1).encode())
    return load_tokenizer(store, folder)


def _grown(extension: Extension, before: RunTokenizer) -> RunTokenizer:
    its = before.manifest
    built = build_tokenizer(
        extension.json,
        its.end_of_document_text,
        its.source,
        its.asked_vocabulary,
        its.begin_of_document_text,
    )
    own = sorted(before.fingerprints - {before.fingerprint})
    ancestors = (*its.ancestors, before.fingerprint, *own)
    manifest = built.manifest.model_copy(update={"ancestors": ancestors})
    return RunTokenizer(built.json, manifest)


def read_growth(store: Store, corpus: str) -> Growth:
    """Return what came of the growth that a corpus brought. Raises FileNotFoundError."""
    return Growth.model_validate_json(store.read(f"{grown_folder(corpus)}/growth.json"))


def withdraw_growth(store: Store, corpus: str) -> None:
    """Remove the tokenizer that a corpus would have brought, which no corpus has ids of."""
    folder = grown_folder(corpus)
    store.remove(f"{folder}/manifest.json")  # it exists while its manifest does
    store.remove(folder)


def find_tokenizer(store: Store, fingerprint: str) -> str | None:
    """Return the key of the folder of the run's tokenizer of a fingerprint; None for a foreign one.

    Args:
        store: the run's store.
        fingerprint: as a corpus's manifest has it.

    Raises:
        InputError: a tokenizer of the run is lost or altered.
    """
    if load_tokenizer(store).is_named(fingerprint):
        return FIRST_TOKENIZER
    for entry in store.list(GROWN):
        folder, _, name = entry.key.rpartition("/")
        if name == "manifest.json" and load_tokenizer(store, folder).fingerprint == fingerprint:
            return folder
    return None
