"""Whether a corpus is good enough to be ingested, by what the first pass read of it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perennial.corpora.ingest.losses import LossAccount
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.corpora.ingest.read import PieceResult
    from perennial.corpora.manifest import IngestSettings, InputFile


def account_losses(inputs: Sequence[InputFile], pieces: Sequence[PieceResult]) -> LossAccount:
    """Return the account of all parts of files that could not be read.

    Args:
        inputs: the files of the corpus.
        pieces: what was read of them.
    """
    documents: Counter[int] = Counter()
    for piece in pieces:
        documents.update(piece.documents_by_file)
    return LossAccount(inputs, [loss for piece in pieces for loss in piece.losses], documents)


def check_quality(
    where: str,
    settings: IngestSettings,
    pieces: Sequence[PieceResult],
    account: LossAccount,
) -> None:
    """Raise InputError for a corpus of which too much is bad, or that holds no text.

    The bound holds for its documents, its stored bytes and its files, each for itself.

    Args:
        where: the corpus's folder.
        settings: `max_bad_share` is the bound.
        pieces: what was read of the corpus.
        account: what could not be read.
    """
    read = sum(piece.documents for piece in pieces)
    documents = read + account.uncounted
    bad = sum(piece.bad for piece in pieces) + account.uncounted
    lost, stored = account.lost_bytes, account.stored_bytes
    share = settings.max_bad_share
    reasons: Counter[str] = Counter()
    for piece in pieces:
        reasons.update(piece.quarantined)
    if bad > share * documents or lost > share * stored or account.has_too_many_damaged(share):
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        about = "about " if account.uncounted else ""
        raise InputError(
            where,
            "max_bad_share",
            f"{about}{bad} of {documents} documents, {lost} of {stored} bytes and "
            f"{len(account.damaged)} of {account.files} files are bad ({listed})",
            f"repair them, or allow more than {share:g}",
            code="too-much-bad",
        )
    if read == reasons.total():
        raise InputError(
            where,
            settings.text_field,
            "it holds no text",
            "land documents with text",
            code="no-text",
        )
