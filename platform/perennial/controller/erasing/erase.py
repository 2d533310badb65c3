"""Erase a corpus, or documents of it, and list what contains it (the right to be forgotten).

In this order, so that a process may be killed anywhere and the command be repeated: new files
beside the old ones, the tombstone, the new manifest, the event, and then removal. From the manifest
on nothing trains on what is erased; from the event on `verify` knows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial import corpora
from perennial.controller.decisions import record_landings
from perennial.controller.erasing.sweep import (
    list_kept,
    list_leftovers,
    list_samples,
    sweep,
    write_manifest,
)
from perennial.controller.storage.loans import find_borrower, own_folder
from perennial.corpora.erasing.mask import ErasedDocuments, bury, find_documents, mask
from perennial.corpora.erasing.selection import DocumentQuery, Matcher, parse_documents
from perennial.corpora.erasing.tombstone import Tombstone, digest_tombstone, read_tombstone
from perennial.errors import Busy, InputError
from perennial.runs import lease
from perennial.runs.events import Erased
from perennial.runs.ledger import now
from perennial.runs.transitions import TRANSITIONS
from perennial.runs.trunk.containment import Containment, Stretches
from perennial.store import open_store
from perennial.training.checkpoint.manifest import MANIFEST

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.runs.state import Corpus

_ALL = ((0, 2**62),)


@dataclass(frozen=True)
class Erasure:
    """Result of an erasure, or of one that is planned.

    Attributes:
        corpus: its name; whole: whether nothing of it is left.
        documents, held_out, tokens: that are erased; the held-out ones are among the documents.
        stages: that were trained on it, with the trunk step that first was.
        checkpoints, releases, trials: that were trained on it; they keep their weights.
        leaves: the unfinished stage that leaves the trunk; "" for none.
        removed: what is removed, by place.
        kept: what is not erased, and why.
        missing: what MLflow did not take; `track` brings it.
    """

    corpus: str
    whole: bool
    documents: int
    held_out: int
    tokens: int
    stages: dict[str, int]
    checkpoints: tuple[str, ...]
    releases: tuple[str, ...]
    trials: tuple[str, ...]
    leaves: str
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    missing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def erase(work: Workspace, corpus: str, documents: Path | None = None, reason: str = "") -> Erasure:
    """Erase a corpus, or documents of it. Safe to repeat and to kill.

    Args:
        work: the run; this process takes charge of it.
        corpus: the corpus.
        documents: a file that names documents, see `parse_documents`; None for the whole corpus.
        reason: why, kept in the ledger.

    Raises:
        Busy: another process trains, tokenises, releases or measures, and lives.
        InputError: there is no such corpus or document, or it cannot be erased now.
    """
    plan_erase(work, corpus, documents)  # before anything is stopped or written
    work.take_whole()
    # Of this and of a fork that begins, at least one sees the other.
    with lease.announce(open_store(work.store.url), "erase", now()) as mine:
        # What it writes after the sweep, samples of erased text among it, would stay.
        if holder := lease.living_holder(work.store, mine, lease.BESIDE):
            raise Busy(f"{holder} releases or measures this run: wait until it ends")
        _check_lent(work, corpus)
        return _erase(work, corpus, documents, reason)


def _erase(work: Workspace, corpus: str, documents: Path | None, reason: str) -> Erasure:
    own_folder(work.store, f"corpora/{corpus}")
    if corpus not in work.state.corpora:
        record_landings(work, corpus)
    _check_state(work, work.state.corpora[corpus], whole=documents is None)
    unfinished = read_tombstone(work.store, corpus, work.state.corpora[corpus].erasures)
    if unfinished is not None:  # the process that wrote it was killed
        _commit(work, unfinished, reason)
    known = work.state.corpora[corpus]
    leaves = _leaving(work, known, whole=documents is None)
    buried = _tombstones(work, known)
    for tombstone in _next(work, known, documents, buried, writes=True):
        _commit(work, tombstone, reason)
        buried.append(tombstone)
    removed = sweep(work, buried)
    return _describe(work, corpus, buried, leaves, removed)


def plan_erase(work: Workspace, corpus: str, documents: Path | None = None) -> Erasure:
    """Return what `erase` would do; arguments and errors are its, and it reads only."""
    state = work.ledger.read()
    known = state.corpora.get(corpus)
    if known is None:
        known = _landed_only(work, corpus)
    _check_state(work, known, whole=documents is None)
    _check_lent(work, corpus)
    leaves = _leaving(work, known, whole=documents is None)
    buried = _tombstones(work, known)
    unfinished = read_tombstone(work.store, corpus, known.erasures)
    if unfinished is not None:
        buried.append(unfinished)
    buried += _next(work, known, documents, buried, writes=False)
    removed = [left.place for left in list_leftovers(work, buried)] if buried else []
    return _describe(work, corpus, buried, leaves, removed)


def _landed_only(work: Workspace, name: str) -> Corpus:
    from perennial.runs.state import Corpus

    if name in [landed.name for landed in corpora.list_landed(work.inbox)]:
        return Corpus(name, state="landed")
    known = ", ".join(work.state.corpora) or "none yet"
    raise InputError(
        work.where, name, "there is no such corpus", f"corpora: {known}", code="corpus-missing"
    )


def _check_state(work: Workspace, corpus: Corpus, *, whole: bool) -> None:
    if corpus.state == "erased":
        return  # what a killed process left is removed
    if (corpus.state, "erased") not in TRANSITIONS:
        raise InputError(
            work.where, corpus.name, f"it is {corpus.state}, and what tokenises it writes its text",
            "wait until it is ready, or `perennial refuse` it first", code="decision-not-possible",
        )  # fmt: skip
    if not whole and not corpus.sequences:
        raise InputError(
            work.where, corpus.name, "it is not tokenised, so its documents are the inbox's alone",
            "remove them from its files there, or erase the corpus", code="decision-not-possible",
        )  # fmt: skip


def _check_lent(work: Workspace, corpus: str) -> None:
    """Refuse a corpus that a fork reads here: it would lose what was not erased in it."""
    borrower = find_borrower(work.store, f"corpora/{corpus}")
    if borrower is not None:
        raise InputError(
            work.where, corpus, f"the run in {borrower.url} borrows it",
            "erase it there first: that run then has its own copy of what is left",
            code="corpus-lent",
        )  # fmt: skip


def _leaving(work: Workspace, corpus: Corpus, *, whole: bool) -> str:
    """Return the unfinished stages that leave the trunk with the corpus; "" for none."""
    stages = work.state.unfinished
    places = [n for n, stage in enumerate(stages) if whole and corpus.name in stage.corpora]
    return " and ".join(stage.name for stage in stages[places[0] :]) if places else ""


def _tombstones(work: Workspace, corpus: Corpus) -> list[Tombstone]:
    """Return the tombstones of the erasures that the ledger has."""
    read = (read_tombstone(work.store, corpus.name, n) for n in range(corpus.erasures))
    return [tombstone for tombstone in read if tombstone is not None]


def _next(
    work: Workspace,
    corpus: Corpus,
    documents: Path | None,
    buried: Sequence[Tombstone],
    *,
    writes: bool,
) -> list[Tombstone]:
    """Return the tombstone of what is to be erased now; none where it is erased already."""
    if any(its.whole for its in buried):
        return []
    if documents is None:
        return [_bury(work, corpus, buried)]
    manifest = corpora.read_manifest(work.store, corpus.name)
    data = _read_file(documents, manifest)
    asked = hashlib.sha256(data).hexdigest()
    queries = _parse(documents, data, manifest)
    if asked in {its.asked for its in buried}:
        return []
    matcher = Matcher(queries, [file.name for file in manifest.inputs])
    tokenizer = corpora.load_tokenizer(
        work.store, *filter(None, [corpora.find_tokenizer(work.store, manifest.tokenizer)])
    )
    chosen = find_documents(work.store, manifest, tokenizer, matcher)
    _check_found(documents, queries, matcher, manifest, buried)
    if chosen.is_empty:
        return []
    _check_left(documents, manifest, chosen)
    if not writes:
        return [_foresee(manifest, chosen)]
    tombstone = mask(work.store, manifest, chosen)
    samples = tuple(list_samples(work, tombstone))
    return [tombstone.model_copy(update={"samples": samples, "asked": asked})]


def _bury(work: Workspace, corpus: Corpus, buried: Sequence[Tombstone]) -> Tombstone:
    if corpus.sequences:
        tombstone = bury(corpora.read_manifest(work.store, corpus.name))
    else:
        tombstone = Tombstone(
            corpus=corpus.name, number=len(buried), whole=True, before="", manifest=None,
            documents=0, tokens=0,
        )  # fmt: skip
    return tombstone.model_copy(update={"samples": tuple(list_samples(work, tombstone))})


def _read_file(path: Path, manifest: corpora.CorpusManifest) -> bytes:
    if not manifest.documents:
        raise InputError(
            f"corpora/{manifest.name}", "", "the documents of its rows were not kept",
            "erase the whole corpus: leave out --documents", code="documents-not-kept",
        )  # fmt: skip
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            "command line", "--documents", f"{path} cannot be read ({error.strerror})",
            "name a file with a document a line", code="documents-unreadable",
        ) from None  # fmt: skip


def _parse(path: Path, data: bytes, manifest: corpora.CorpusManifest) -> list[DocumentQuery]:
    columns = {*manifest.settings.metadata_columns}
    columns |= {"domain"} if manifest.settings.domain_field else set()
    return parse_documents(str(path), data, columns)


def _check_found(
    path: Path,
    queries: Sequence[DocumentQuery],
    matcher: Matcher,
    manifest: corpora.CorpusManifest,
    buried: Sequence[Tombstone],
) -> None:
    """Refuse a file with a document that is nowhere, unless it was erased before."""
    gone = {digest for its in buried for digest in its.digests}
    missing = [
        query
        for query in queries
        if query.line not in matcher.matched_lines and not query.is_among(gone)
    ]
    if missing:
        raise InputError(
            str(path), f"line {missing[0].line}",
            f"{manifest.name} has no such document ({len(missing)} of {len(queries)} lines name "
            "none); of a held-out document no file and offset are kept",
            "name what `perennial trace --document` or `--text` finds, or leave the line out; "
            "nothing was erased", code="document-missing",
        )  # fmt: skip


def _check_left(path: Path, manifest: corpora.CorpusManifest, chosen: ErasedDocuments) -> None:
    if chosen.held and len(chosen.held) == manifest.counts.held_out_documents:
        raise InputError(
            str(path), "", f"these are all held-out documents of {manifest.name}, which could not "
            "be measured without any",
            "erase the whole corpus: leave out --documents", code="nothing-left-held-out",
        )  # fmt: skip


def _foresee(manifest: corpora.CorpusManifest, chosen: ErasedDocuments) -> Tombstone:
    """Return roughly the tombstone that `mask` would give, without writing a file."""
    touched = {manifest.shards[index].file for index in chosen.spans}
    touched |= {manifest.documents[index].file for index in chosen.spans}
    touched |= {*chosen.records} | (
        {file.file for file in manifest.holdout} if chosen.held else set()
    )
    return chosen.as_tombstone(manifest, [f for f in manifest.files if f.file in touched])


def _commit(work: Workspace, tombstone: Tombstone, reason: str) -> None:
    """Write a tombstone, the manifest that it holds, and the event."""
    data = tombstone.encode()
    work.store.write(tombstone.key, data)
    write_manifest(work, tombstone)
    work.record(
        Erased(
            at=now(),
            corpus=tombstone.corpus,
            number=tombstone.number,
            whole=tombstone.whole,
            documents=tombstone.documents,
            tokens=tombstone.tokens,
            digest=tombstone.manifest.digest if tombstone.manifest else "",
            tombstone=digest_tombstone(data),
            reason=reason or "operator decision",
        )
    )
    what = "the corpus" if tombstone.whole else f"{tombstone.documents:,} documents of it"
    work.log(f"{tombstone.corpus}: {what} is erased; removing its bytes")


def _describe(
    work: Workspace,
    corpus: str,
    buried: list[Tombstone],
    leaves: str,
    removed: Sequence[str],
) -> Erasure:
    whole = any(its.whole for its in buried)
    rows: Stretches = _ALL if whole else [rows for its in buried for rows in its.rows]
    held = Containment(work.state, corpus, rows)
    keys = [
        info.key.removesuffix(f"/{MANIFEST}")
        for folder in ("checkpoints", "branches")
        for info in work.store.list(folder)
        if info.key.endswith(f"/{MANIFEST}")
    ]
    checkpoints = tuple(key for key in keys if held.has_checkpoint(key))
    releases = tuple(r.name for r in work.state.releases if held.has_branch(r.name))
    trials = tuple(name for name in work.state.searches.trials if held.has_branch(name))
    return Erasure(
        corpus=corpus,
        whole=whole,
        documents=sum(its.documents for its in buried),
        held_out=sum(its.held_out for its in buried),
        tokens=sum(its.tokens for its in buried),
        stages=held.stages,
        checkpoints=checkpoints,
        releases=releases,
        trials=trials,
        leaves=leaves,
        removed=tuple(removed),
        kept=tuple(list_kept(work, buried, [*checkpoints, *releases])) if buried else (),
    )
