"""The sizes of corpora that are not ingested yet: of those in the inbox, by samples of them."""

from __future__ import annotations

from perennial import corpora
from perennial.controller.before_compute import estimate_corpus
from perennial.controller.context import Workspace
from perennial.controller.ingest_stage import settings_of
from perennial.corpora.inbox import LandedCorpus
from perennial.corpora.landing import StoredLandingFile
from perennial.errors import InputMoved
from perennial.planning.lookahead import Expected, expected_corpora

_MOST_SAMPLED = 20
"""Corpora that are sampled: a forecast must not read an inbox of thousands."""


def list_expected(work: Workspace) -> tuple[tuple[Expected, ...], tuple[str, ...]]:
    """Return the corpora to come, and notes on those that are too small to be trained.

    Args:
        work: the run.
    """
    inbox = {landed.name: landed for landed in corpora.list_landed(work.inbox)}
    known = work.state.corpora
    waiting = [n for n in inbox if n not in known or not known[n].sequences]
    sampled = {}
    for name in waiting[:_MOST_SAMPLED]:
        tokens = _sample_tokens(work, inbox[name])
        if tokens is not None:
            sampled[name] = tokens
    step = work.spec.tokens_per_step
    notes = tuple(
        f"{name}: about {tokens:,} tokens, less than one step of {step:,}; it will be refused "
        "unless a lower training.global_batch or a shorter corpora.sequence_length lets it fit"
        for name, tokens in sampled.items()
        if tokens < step
    )
    sizes = {name: landed.total_bytes for name, landed in inbox.items()}
    return expected_corpora(work.spec, work.state, sizes, sampled), notes


def _sample_tokens(work: Workspace, landed: LandedCorpus) -> int | None:
    """Return the tokens of a landed corpus by its first documents; None for one of token ids."""
    if work.spec.corpora.tokens_of(landed.name) is not None:
        return None
    files = [
        StoredLandingFile(
            file.name, file.size_bytes, work.inbox, f"{landed.name}/{file.name}", etag=file.etag
        )
        for file in landed.files
    ]
    try:
        estimated = estimate_corpus(work, files, settings_of(work, landed.name))
    except (FileNotFoundError, InputMoved):
        return None  # it is being replaced, or was removed
    return None if estimated is None else estimated.tokens
