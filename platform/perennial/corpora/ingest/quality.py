"""Whether what the first pass read of a corpus is good enough; what is kept where it is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perennial.corpora.file_list import escape_text
from perennial.corpora.formats.base import counts_as_bad
from perennial.corpora.ingest.documents import Removed, encode_removed
from perennial.corpora.ingest.losses import LossAccount
from perennial.corpora.ingest.read import KEPT_RECORDS, BadRecord, PieceResult, evidence_key
from perennial.corpora.ingest.sample import list_inputs, sample_bad_records
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.corpora.inbox import LandedCorpus
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
        raise _without_text(where, kept, inputs, settings, pieces)


def _describe_reasons(inputs: Sequence[InputFile], pieces: Sequence[PieceResult]) -> str:
    """Return the number of bad records of each reason, and where and what the first one is."""
    reasons: Counter[str] = Counter()
    first: dict[str, BadRecord] = {}
    for piece in pieces:
        reasons.update(piece.quarantined)
        first = {**piece.first, **first}
    # What counts is what has to be repaired; what steps dropped on purpose would hide it.
    shown = Counter({why: n for why, n in reasons.items() if counts_as_bad(why)}) or reasons
    words = []
    for reason, count in shown.most_common(_MOST_REASONS):
        place = ""
        if reason in first:
            record = first[reason]
            detail = f": {record.detail}" if record.detail else ""
            place = f", the first in {inputs[record.file].name} at {record.offset}{detail}"
        words.append(f"{count} {reason}{place}")
    if not words:
        return f"there are no documents in its {len(inputs)} files"
    more = len(shown) - len(words)
    return "; ".join([*words, *([f"{more} more reasons"] if more else [])])


def refuse_sample(
    store: Store, inbox: Store, landed: LandedCorpus, settings: IngestSettings, max_bytes: int
) -> InputError:
    """Return the refusal of a corpus of which a sample holds no text; its bad records are kept.

    Args:
        store: the run's store.
        inbox: the store that the corpus landed in.
        landed: the corpus.
        settings: how documents were looked for.
        max_bytes: bytes of text that the sample would have had, roughly.
    """
    inputs = list_inputs(landed)
    reasons: Counter[str] = Counter()
    first: dict[str, BadRecord] = {}
    kept: list[Removed] = []
    for file, record in sample_bad_records(inbox, landed, settings, max_bytes):
        bad = BadRecord(file=file, offset=record.offset, detail=escape_text(record.detail))
        reasons[record.reason] += 1
        first.setdefault(record.reason, bad)
        if reasons[record.reason] <= KEPT_RECORDS:
            kept.append(Removed(file, bad.offset, record.reason, bad.detail))
    store.remove(refused_folder(landed.name))
    if kept:
        key = f"{refused_folder(landed.name)}/quarantine-00000.jsonl"
        store.write(key, encode_removed(kept, inputs, {}))
    read = PieceResult(runs=0, documents=sum(reasons.values()), quarantined=reasons, first=first)
    return _without_text(
        f"{inbox.url}/{landed.name}",
        f"{store.url}/{refused_folder(landed.name)}",
        inputs,
        settings,
        [read],
    )


def _without_text(
    where: str,
    kept: str,
    inputs: Sequence[InputFile],
    settings: IngestSettings,
    pieces: Sequence[PieceResult],
) -> InputError:
    reasons = sum((Counter(piece.quarantined) for piece in pieces), Counter[str]())
    by_steps = sum(count for reason, count in reasons.items() if "/" in reason)
    field, problem, remedy = settings.text_field, "it holds no text", "land documents with text"
    if 2 * by_steps > reasons.total():
        field, problem = "corpora.steps", "the steps leave none of its documents"
        remedy = "correct or leave out the step that drops them"
    described = _describe_reasons(inputs, pieces)
    remedy = f"{remedy} (every record: {kept}/)"
    return InputError(where, field, f"{problem} ({described})", remedy, code="no-text")


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
