"""Documents that are token ids already: checked against the vocabulary, ended as text is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.corpora.formats.base import EMPTY_TEXT, MISSING_TEXT, TOO_LONG, Record, make_record

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.corpora.manifest import IngestSettings, TokenIds

IDS_NOT_INTEGERS = "ids-not-integers"
OUT_OF_VOCABULARY = "token-out-of-vocabulary"
"""an id that no token of the declared vocabulary has"""
STORED = np.dtype("<u4")
"""type of the ids in a record's `text`, whatever the file had, so that equal ids are equal bytes"""


def make_records(
    offset: int,
    value: Any,
    domain: object,
    settings: IngestSettings,
    fields: Sequence[object] = (),
) -> Iterable[Record]:
    """Return the document in a field or a column, or those of its ids where ids were declared.

    Args:
        offset: what identifies the first one in its file.
        value: what was read: text, or a list or array of ids.
        domain: the value that was read as the domain; None for none.
        settings: `tokens` says which of the two.
        fields: the values that were read as its `other_fields`; None for none.
    """
    if settings.tokens is None:
        return (make_record(offset, value, domain, settings, fields),)  # faster than a generator
    if value is None:
        return (Record(offset, reason=MISSING_TEXT, detail="null"),)
    ids = as_ids(value)
    if ids is None:
        return (Record(offset, reason=IDS_NOT_INTEGERS, detail=_describe(value)),)
    return split_ids(offset, ids, domain, settings, settings.tokens, fields)


def _describe(value: Any) -> str:
    """Return what a value is that is no list of integers."""
    if not isinstance(value, list | np.ndarray):
        return f"{type(value).__name__} that is no list of ids"
    for place, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, int | np.integer):
            return f"{type(item).__name__} at {place} of its list; ids are integers"
    return "integers that no one type of 64 bits holds"


def as_ids(value: Any) -> npt.NDArray[Any] | None:
    """Return a list or array as integers `(ids,)`; None for what holds anything else."""
    try:
        ids = np.asarray(value) if isinstance(value, list | np.ndarray) else None
    except (ValueError, OverflowError):  # lists in a list, of several lengths
        return None
    if ids is None or ids.ndim != 1:
        return None
    if not len(ids):
        return np.empty(0, dtype=STORED)
    return ids if ids.dtype.kind in "iu" else None


def split_ids(
    offset: int,
    ids: npt.NDArray[Any],
    domain: object,
    settings: IngestSettings,
    tokens: TokenIds,
    fields: Sequence[object] = (),
) -> Iterator[Record]:
    """Yield the documents of ids, which an end-of-document id ends; the last one may have none.

    Args:
        offset: that of the first id; the others follow it.
        ids: the ids `(ids,)`.
        domain: the value that was read as the domain; None for none.
        settings: bounds a document.
        tokens: the vocabulary, and the ids at the borders of a document.
        fields: the values that were read as its `other_fields`; None for none.
    """
    ends = np.flatnonzero(ids == tokens.end_of_document).tolist()
    # What ends with an end has no empty document behind it; nothing at all is an empty one.
    if not ends or ends[-1] + 1 < len(ids):
        ends.append(len(ids))
    begin = 0
    for end in ends:
        yield make_document(offset + begin, ids[begin:end], domain, settings, tokens, fields)
        begin = end + 1


def make_document(
    offset: int,
    ids: npt.NDArray[Any],
    domain: object,
    settings: IngestSettings,
    tokens: TokenIds,
    fields: Sequence[object] = (),
) -> Record:
    """Return the document of ids, or the reason why they are none.

    Args:
        offset: what identifies it in its file.
        ids: the ids `(ids,)` without an end of the document.
        domain: the value that was read as its domain; None for none.
        settings: bounds a document.
        tokens: the vocabulary, and the ids at the borders of a document.
        fields: the values that were read as its `other_fields`; None for none.
    """
    if len(ids) * STORED.itemsize > settings.max_document_bytes:
        return Record(offset, reason=TOO_LONG, detail=f"a document of {len(ids)} ids")
    strange = np.flatnonzero((ids < 0) | (ids >= tokens.vocabulary))
    if len(strange):
        first = int(strange[0])
        detail = (
            f"id {int(ids[first])} at {first} of its document; ids are below {tokens.vocabulary}"
        )
        return Record(offset, reason=OUT_OF_VOCABULARY, detail=detail)
    if len(ids) and ids[0] == tokens.begin_of_document:
        ids = ids[1:]  # which the rows get again
    if not len(ids):
        return Record(offset, reason=EMPTY_TEXT)
    named = make_record(offset, "ids", domain, settings, fields)  # checks the domain
    stored = ids.astype(STORED) + STORED.type(tokens.first)
    return named if named.reason else named._replace(text=stored.tobytes())
