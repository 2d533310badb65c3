"""From a document to every model that saw it, and from a release to what it was trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial import corpora
from perennial.corpora.document_spans import DocumentSpan, read_spans
from perennial.corpora.erasing.mask import find_documents
from perennial.corpora.erasing.selection import (
    DocumentQuery,
    Matcher,
    digest_of_text,
    parse_documents,
)
from perennial.corpora.erasing.tombstone import as_stretches, read_tombstone
from perennial.errors import InputError
from perennial.mixture import trained_sequences
from perennial.runs.trunk.containment import Containment
from perennial.store import read_checked
from perennial.training.checkpoint.manifest import MANIFEST

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.corpora import CorpusManifest
    from perennial.store import Store


@dataclass(frozen=True)
class TracedPlace:
    """A document as a corpus has it, or had it.

    Attributes:
        corpus: its name.
        spans: its stretches in the corpus's rows; none where it is held out, or erased.
        held_out: how often it is one of the held-out documents, which nothing trains on.
        erased: whether it was erased from the corpus.
        stages: that were trained on it, with the trunk step that first was.
        checkpoints, releases: that were trained on it.
    """

    corpus: str
    spans: tuple[DocumentSpan, ...]
    held_out: int
    erased: bool
    stages: dict[str, int]
    checkpoints: tuple[str, ...]
    releases: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        spans = [span.to_dict() for span in self.spans]
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"spans": spans}


@dataclass(frozen=True)
class TracedDocument:
    """A document, by the digest of its text, wherever the run has it or had it."""

    digest: str
    places: tuple[TracedPlace, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {"digest": self.digest, "places": [place.to_dict() for place in self.places]}


@dataclass(frozen=True)
class TracedRelease:
    """The stages and corpora behind a release.

    Attributes:
        release: its name.
        origin: the trunk's checkpoint that it branches from.
        stages: of the trunk up to there, in their order.
        tokens: trained of each corpus, its anneal included; corpora that were erased since, too.
        erased: those of them that were erased since as a whole.
    """

    release: str
    origin: str
    stages: tuple[str, ...]
    tokens: dict[str, int]
    erased: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return asdict(self)


def trace_document(work: Workspace, digest: str) -> TracedDocument:
    """Return where a document is and what was trained on it; see `Run.trace_document`."""
    query, *more = parse_documents("command line", digest.encode() or b"#", ())
    if more or query.digest is None or query.place is not None:
        raise InputError(
            "command line", "--document", f"{digest!r} is no digest",
            "give at least 16 hexadecimal digits of the sha256 of its text, or --text",
            code="documents-unreadable",
        )  # fmt: skip
    state = work.ledger.read()
    keys = _checkpoints(work.store)
    places = [
        place
        for corpus in state.corpora.values()
        if corpus.sequences and (place := _trace_in(work, corpus.name, query, keys)) is not None
    ]
    if not places:
        raise InputError(
            "command line", "--document", f"no corpus has a document of digest {digest}",
            "the digest is that of the text as it was tokenised, after the steps of the run file",
            code="document-missing",
        )  # fmt: skip
    return TracedDocument(digest, tuple(places))


def trace_text(work: Workspace, path: Path) -> TracedDocument:
    """Return the document whose text a file holds; see `Run.trace_text`."""
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as wrong:
        raise InputError(
            "command line", "--text", f"{path} cannot be read ({wrong})", "name a file of UTF-8",
            code="documents-unreadable",
        ) from None  # fmt: skip
    # Editors end a file with a line break, which the document may not have.
    digests = dict.fromkeys(map(digest_of_text, (text, text.removesuffix("\n"))))
    for digest in digests:
        try:
            return trace_document(work, digest)
        except InputError as missing:
            if missing.code != "document-missing" or digest == [*digests][-1]:
                raise
    raise AssertionError("the last one returns or raises")


def _trace_in(
    work: Workspace, corpus: str, query: DocumentQuery, keys: list[str]
) -> TracedPlace | None:
    """Return what a corpus has of a document; None for nothing."""
    manifest = corpora.read_manifest(work.store, corpus)
    gone = [its for its in _tombstones(work, corpus) if query.is_among(its.digests)]
    spans, held = _find(work.store, manifest, query)
    if not spans and not held and not gone:
        return None
    rows = [*as_stretches(sorted({span.row for span in spans}))]
    rows += [stretch for its in gone for stretch in its.rows]
    within = Containment(work.state, corpus, rows)
    return TracedPlace(
        corpus=corpus,
        spans=spans,
        held_out=held,
        erased=bool(gone),
        stages=within.stages if rows else {},
        checkpoints=tuple(key for key in keys if rows and within.has_checkpoint(key)),
        releases=tuple(r.name for r in work.state.releases if rows and within.has_branch(r.name)),
    )


def _tombstones(work: Workspace, corpus: str) -> Iterator[Any]:
    for number in range(work.state.corpora[corpus].erasures):
        if (tombstone := read_tombstone(work.store, corpus, number)) is not None:
            yield tombstone


def _find(
    store: Store, manifest: CorpusManifest, query: DocumentQuery
) -> tuple[tuple[DocumentSpan, ...], int]:
    """Return a document's stretches in a corpus's rows, and how often it is held out."""
    if manifest.erased or not _may_have(store, manifest, query.digest or 0):
        return (), 0
    matcher = Matcher([query], [file.name for file in manifest.inputs])
    folder = filter(None, [corpora.find_tokenizer(store, manifest.tokenizer)])
    chosen = find_documents(store, manifest, corpora.load_tokenizer(store, *folder), matcher)
    spans = read_spans(store, manifest, chosen.rows) if chosen.rows else ()
    digests = set(chosen.digests)
    return tuple(span for span in spans if span.digest in digests), len(chosen.held)


def _may_have(store: Store, manifest: CorpusManifest, digest: int) -> bool:
    """Return whether the digests of a corpus's texts have one; true where none were kept."""
    for file in manifest.digests:
        data = read_checked(store, f"corpora/{manifest.name}/{file.file}", file.sha256)
        digests = np.frombuffer(data, dtype="<u8")
        place = int(np.searchsorted(digests, np.uint64(digest)))
        if place < len(digests) and int(digests[place]) == digest:
            return True
    return not manifest.digests


def _checkpoints(store: Store) -> list[str]:
    suffix = f"/{MANIFEST}"
    keys = [info.key for folder in ("checkpoints", "branches") for info in store.list(folder)]
    return [key.removesuffix(suffix) for key in keys if key.endswith(suffix)]


def trace_release(work: Workspace, name: str) -> TracedRelease:
    """Return what a release was trained on; see `Run.trace_release`."""
    state = work.ledger.read()
    branch = state.branches.get(name)
    if branch is None:
        names = ", ".join(state.branches) or "none yet"
        raise InputError(
            "command line", "--release", f"there is no release {name!r}",
            f"its releases: {names}", code="release-missing",
        )  # fmt: skip
    stage = state.stage(branch.stage)
    rows = Counter(state.seen(stage, branch.step))
    if branch.mix is not None:
        rows.update(trained_sequences(branch.mix, branch.mix.steps))
    length = work.spec.corpora.sequence_length
    return TracedRelease(
        release=name,
        origin=branch.source,
        stages=tuple(its.name for its in (*state.lineage(stage), stage)),
        tokens={corpus: count * length for corpus, count in rows.items() if count},
        erased=tuple(n for n in rows if n in state.corpora and state.corpora[n].state == "erased"),
    )
