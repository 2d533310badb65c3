"""Whether what the first pass read of a corpus is good enough; what is kept where it is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perennial.corpora.ingest.losses import LossAccount
from perennial.corpora.ingest.read import evidence_key
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.corpora.ingest.read import BadRecord, PieceResult
    from perennial.corpora.manifest import IngestSettings, InputFile
    from perennial.store import Store

_MOST_REASONS = 5


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
    kept: str,
    inputs: Sequence[InputFile],
    settings: IngestSettings,
    pieces: Sequence[PieceResult],
    account: LossAccount,
) -> None:
    """Raise InputError for a corpus of which too much is bad, or that holds no text.

    The bound holds for its documents, its stored bytes and its files, each for itself.

    Args:
        where: the corpus's folder.
        kept: the folder of the evidence; see `keep_evidence`.
        inputs: the files of the corpus.
        settings: `max_bad_share` is the bound.
        pieces: what was read of the corpus.
        account: what could not be read.
    """
    read = sum(piece.documents for piece in pieces)
    documents = read + account.uncounted
    bad = sum(piece.bad for piece in pieces) + account.uncounted
    lost, stored = account.lost_bytes, account.stored_bytes
    share = settings.max_bad_share
    evidence = f"every record: {kept}/"
    if bad > share * documents or lost > share * stored or account.has_too_many_damaged(share):
        about = "about " if account.uncounted else ""
        raise InputError(
            where,
            "max_bad_share",
            f"{about}{bad} of {documents} documents, {lost} of {stored} bytes and "
            f"{len(account.damaged)} of {account.files} files are bad "
            f"({_describe_reasons(inputs, pieces)})",
            f"repair them, or allow more than {share:g} ({evidence})",
            code="too-much-bad",
        )
    if read == sum(sum(piece.quarantined.values()) for piece in pieces):
        raise InputError(
            where,
            settings.text_field,
            f"it holds no text ({_describe_reasons(inputs, pieces)})",
            f"land documents with text ({evidence})",
            code="no-text",
        )


def _describe_reasons(inputs: Sequence[InputFile], pieces: Sequence[PieceResult]) -> str:
    """Return the number of bad records of each reason, and where and what the first one is."""
    reasons: Counter[str] = Counter()
    first: dict[str, BadRecord] = {}
    for piece in pieces:
        reasons.update(piece.quarantined)
        first = {**piece.first, **first}
    words = []
    for reason, count in reasons.most_common(_MOST_REASONS):
        place = ""
        if reason in first:
            record = first[reason]
            detail = f": {record.detail}" if record.detail else ""
            place = f", the first in {inputs[record.file].name} at {record.offset}{detail}"
        words.append(f"{count} {reason}{place}")
    more = len(reasons) - len(words)
    return "; ".join([*words, *([f"{more} more reasons"] if more else [])])


def refused_folder(name: str) -> str:
    """Return the folder of a run's store that holds the bad records of a refused corpus."""
    return f"refused/{name}"


def keep_evidence(store: Store, staging: Store, name: str, pieces: int) -> None:
    """Keep the bad records of a corpus that is refused, in place of those of an earlier refusal.

    Args:
        store: the run's store.
        staging: the store of what the ingest staged.
        name: the corpus's name.
        pieces: number of its pieces.
    """
    store.remove(refused_folder(name))
    for piece in range(pieces):
        try:
            records = staging.read(evidence_key(piece))
        except FileNotFoundError:
            continue  # it has none
        store.write(f"{refused_folder(name)}/quarantine-{piece:05d}.jsonl", records)
