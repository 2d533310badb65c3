"""Growth of the run's tokenizer: which corpus brings entries, when, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial import corpora
from perennial.corpora.growth.extend import Asked, OwnIds
from perennial.corpora.manifest import manifest_key
from perennial.errors import InputError
from perennial.runs.events import Extended
from perennial.runs.job_factory import tokenizer_folder
from perennial.runs.ledger import now
from perennial.runs.stage_planner import order_of

if TYPE_CHECKING:
    from perennial.config.run import ExtensionSpec
    from perennial.controller.context import Workspace
    from perennial.corpora import IngestSettings, LandedCorpus, RunTokenizer
    from perennial.runs.entities import Corpus
    from perennial.runs.state import Stage


def extension_for(work: Workspace, name: str) -> ExtensionSpec | None:
    """Return what a corpus brings to the tokenizer; None for nothing, or without a stage."""
    own = work.spec.stages.corpora.get(name)
    return own.extend_tokenizer if own and order_of(work.spec).trains(name) else None


def asked_of(brought: ExtensionSpec) -> Asked:
    """Return what a corpus asks of the tokenizer."""
    if brought.ids is not None:
        return OwnIds(ids=brought.ids)
    return brought.entries if brought.entries is not None else brought.tokens or ()


def check_extension(work: Workspace, name: str, *, is_text: bool, is_decided: bool) -> None:
    """Raise InputError for entries that a corpus cannot bring, before anything is computed.

    Args:
        work: the run.
        name: the corpus.
        is_text: whether its documents are text.
        is_decided: whether the run has a tokenizer that an accepted corpus has ids of.
    """
    brought = extension_for(work, name)
    if brought is None:
        return
    problem = ""
    if brought.ids is not None:
        declared = work.spec.corpora.tokens_of(name)
        if declared is None or declared.brought_by != name:
            problem = f"nothing says that its documents are these ids (tokens.brought_by: {name})"
    elif not is_text:
        problem = "its documents are token ids, which no entry changes"
    if not is_decided and work.spec.tokenizer.path is None:
        problem = "the run's tokenizer is trained on it, and is made for it"
    if problem:
        raise InputError(
            work.where,
            f"stages.corpora.{name}.extend_tokenizer",
            problem,
            "leave it out",
            code="corpus-cannot-extend",
        )


def settled_tokenizer(work: Workspace) -> RunTokenizer:
    """Return the tokenizer that what lands now is tokenised with: that of what passed."""
    return corpora.load_tokenizer(work.store, tokenizer_folder(work.state.extension))


def tokenizer_of(work: Workspace, stage: Stage) -> RunTokenizer:
    """Return the tokenizer of a stage's model, with every entry that was brought until then."""
    return corpora.load_tokenizer(work.store, tokenizer_folder(work.state.extension_of(stage)))


def tokenizer_for(
    work: Workspace, name: str, landed: LandedCorpus | None, settings: IngestSettings
) -> RunTokenizer:
    """Return the tokenizer of a corpus, with the entries that it brings, which are recorded.

    Args:
        work: the run, which tokenises the corpus.
        name: the corpus.
        landed: the corpus in the inbox; None where it is tokenised already.
        settings: how documents are found in it.
    """
    brought, known = extension_for(work, name), work.state.extensions.get(name)
    if landed is None:
        manifest = corpora.read_manifest(work.store, name)
        is_grown = known is not None and known.fingerprint == manifest.tokenizer
        return (
            corpora.load_tokenizer(work.store, known.folder)
            if known and is_grown
            else (settled_tokenizer(work))
        )
    before = settled_tokenizer(work)
    if brought is None:
        return before
    if brought.ids is None:
        work.log(f"{name}: looking for entries that the tokenizer lacks")
    asked = asked_of(brought)
    grown = corpora.grow_tokenizer(work.store, work.inbox, landed, asked, before, settings)
    if grown.fingerprint == before.fingerprint:
        work.log(f"notice: {name}: there is nothing that a further entry would make shorter")
        return before
    growth = corpora.read_growth(work.store, name)
    work.log(f"{name} brings {growth.describe()}")
    if known is None or known.fingerprint != grown.fingerprint:
        work.record(
            Extended(
                at=now(),
                corpus=name,
                folder=corpora.grown_folder(name),
                fingerprint=grown.fingerprint,
                grew_from=before.fingerprint,
                first=growth.first,
                vocabulary=grown.vocabulary,
            )
        )
    return grown


def withdraw_extension(work: Workspace, name: str) -> None:
    """Remove the tokenizer that a refused corpus brought, unless the corpus was accepted before."""
    if not work.store.exists(manifest_key(name)):
        corpora.withdraw_growth(work.store, name)


def check_return(work: Workspace, corpus: Corpus) -> None:
    """Raise InputError for a corpus whose entries the tokenizer has no place for any more.

    While it was held or refused, another corpus brought entries, which have the same ids.

    Args:
        work: the run.
        corpus: one that a user takes up again.
    """
    name, brought = corpus.name, work.state.extensions.get(corpus.name)
    if brought is None or not corpus.sequences or corpus.state not in ("held", "refused"):
        return
    now_it_is = settled_tokenizer(work).fingerprint
    others = [other for other in work.state.growing if other != name]
    if others or now_it_is != brought.grew_from:
        raise InputError(
            work.where,
            name,
            "its tokens have ids that another corpus brought to the tokenizer meanwhile",
            "land it under another name, so that it is tokenised again",
            code="tokenizer-grew-otherwise",
        )
