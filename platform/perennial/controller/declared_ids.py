"""Corpora that are declared as token ids: compared with the run's tokenizer before any compute."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, get_args

from perennial import corpora
from perennial.config.corpora import DoneToText
from perennial.controller.tokenizer_growth import extension_for, settled_tokenizer
from perennial.corpora.manifest import TokenIds, manifest_key
from perennial.corpora.tokenizer import MANIFEST_KEY
from perennial.errors import InputError
from perennial.store import open_run_store

if TYPE_CHECKING:
    from perennial.config.corpora import TokensSpec
    from perennial.controller.context import Workspace
    from perennial.corpora import RunTokenizer

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def declared_ids(work: Workspace, name: str, is_decided: bool) -> TokenIds | None:
    """Return how the documents of a corpus are token ids; None for a corpus of text.

    Args:
        work: the run.
        name: the corpus.
        is_decided: whether the run's tokenizer is that of a corpus that was accepted.

    Raises:
        InputError: the ids are of another tokenizer, or the run has none yet, or the run file asks
            for what is done to text alone.
    """
    declared = work.spec.corpora.tokens_of(name)
    if declared is None:
        return None
    field = f"corpora.read.{name}.tokens"
    tokenizer = _run_tokenizer(work, name, is_decided)
    _check_text_alone(work, declared, field)
    if declared.brought_by is not None:
        return _own_ids(work, name, declared, tokenizer)
    _check_same(declared, tokenizer, field)
    vocabulary = min(declared.vocabulary or tokenizer.vocabulary, tokenizer.vocabulary)
    return TokenIds(
        field=declared.field,
        dtype=declared.dtype or ("uint16" if vocabulary <= 1 << 16 else "uint32"),
        vocabulary=vocabulary,
        end_of_document=tokenizer.end_of_document,
        begin_of_document=tokenizer.begin_of_document,
    )


def _own_ids(work: Workspace, name: str, declared: TokensSpec, tokenizer: RunTokenizer) -> TokenIds:
    """Return how documents are ids of a vocabulary that a corpus brought, or brings."""
    bringer = str(declared.brought_by)
    first, entries = _entries_of(work, name, bringer, tokenizer)
    return TokenIds(
        field=declared.field,
        dtype=declared.dtype or ("uint16" if entries < 1 << 16 else "uint32"),
        vocabulary=min(declared.vocabulary or entries, entries),
        end_of_document=entries,
        first=first,
    )


def _entries_of(
    work: Workspace, name: str, bringer: str, tokenizer: RunTokenizer
) -> tuple[int, int]:
    """Return the first and the number of the entries that a corpus brought for ids of its own."""
    own = extension_for(work, bringer)
    if own is None or own.ids is None:
        raise _without_entries(
            work, name, f"{bringer} brings none (stages.corpora.{bringer}.extend_tokenizer.ids)"
        )
    if bringer == name and not work.store.exists(manifest_key(name)):
        return tokenizer.vocabulary, own.ids
    brought = work.state.extensions.get(bringer)
    in_force = {tokenizer.fingerprint, *tokenizer.manifest.ancestors}
    if brought is None or (bringer != name and brought.fingerprint not in in_force):
        raise _without_entries(work, name, f"the stage of {bringer} has not passed")
    return brought.first, brought.vocabulary - brought.first


def _without_entries(work: Workspace, name: str, problem: str) -> InputError:
    return InputError(
        work.where,
        f"corpora.read.{name}.tokens.brought_by",
        f"the run's tokenizer has no entries for its ids: {problem}",
        "name the corpus that brings them, which is trained before all others of its vocabulary",
        code="ids-without-entries",
    )


def _run_tokenizer(work: Workspace, name: str, is_decided: bool) -> RunTokenizer:
    """Return the run's tokenizer: the one in its store, or the one that it will have."""
    its, lender = work.spec.tokenizer, work.spec.corpora.borrow
    if is_decided and work.store.exists(MANIFEST_KEY):
        return settled_tokenizer(work)
    if lender is not None and open_run_store(lender).exists(MANIFEST_KEY):
        return corpora.load_tokenizer(open_run_store(lender))
    if its.path is not None:
        return corpora.read_tokenizer(its.path, its.end_of_document, its.begin_of_document)
    raise InputError(
        "run file",
        "tokenizer.vocabulary",
        f"the tokenizer is trained on the text of the first corpus, and {name} is token ids",
        "name the tokenizer of the ids as tokenizer.path, or train a corpus of text first",
        code="ids-without-tokenizer",
    )


def _check_same(declared: TokensSpec, tokenizer: RunTokenizer, field: str) -> None:
    """Refuse ids of another tokenizer than the run's, or than one that it grew from."""
    named = str(declared.tokenizer)
    if _FINGERPRINT.fullmatch(named):
        names = frozenset({named})
    else:
        names = _read_declared(named, f"{field}.tokenizer").fingerprints
    ancestors = tokenizer.manifest.ancestors
    is_same = any(tokenizer.is_named(name) or name in ancestors for name in names)
    if not is_same:
        raise InputError(
            "run file",
            f"{field}.tokenizer",
            f"the ids are of {named}, the run's tokenizer is {tokenizer.fingerprint} "
            f"with {tokenizer.vocabulary} entries",
            "land ids of the run's tokenizer or the text, or give them to a run of their own",
            code="ids-of-another-tokenizer",
        )


def _read_declared(path: str, field: str) -> RunTokenizer:
    """Return the tokenizer that ids are declared to be of; InputError names the field."""
    try:
        return corpora.read_tokenizer(path)
    except InputError as wrong:
        raise InputError("run file", field, wrong.problem, wrong.remedy, code=wrong.code) from wrong


def _check_text_alone(work: Workspace, declared: TokensSpec, field: str) -> None:
    """Refuse to leave out, without a word, what the run file asks for."""
    for what in get_args(DoneToText):
        if getattr(work.spec.corpora, what) not in (None, ()) and what not in declared.without:
            raise InputError(
                "run file",
                f"{field}.without",
                f"corpora.{what} is done to text, and these documents are token ids",
                f"name it in without: [{what}] to take them as they are, or land the text",
                code="ids-are-not-text",
            )
