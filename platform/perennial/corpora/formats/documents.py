"""What reading a landed file yields: documents, and parts that are not documents with a reason."""

from __future__ import annotations

from typing import NamedTuple

TRUNCATED = "truncated"
"""the compressed stream ends early or is damaged"""
UNREADABLE = "unreadable"
"""not a Parquet file, or a damaged one"""
INVALID_UTF8 = "invalid-utf8"
INVALID_JSON = "invalid-json"
MISSING_TEXT = "missing-text"
TEXT_NOT_STRING = "text-not-string"
TOO_LONG = "too-long"
EMPTY_TEXT = "empty-text"
EMPTY_FILE = "empty-file"
UNKNOWN_FORMAT = "unknown-format"
VANISHED = "vanished"
"""the file is gone since the corpus was listed"""
CHANGED = "changed"
"""the file is another one since the corpus was listed"""

DUPLICATE = "duplicate"
"""an equal document is there already"""
NEAR_DUPLICATE = "near-duplicate-of-held-out"
CONTAMINATED = "contaminated"
"""it holds a piece of an evaluation text"""

HARMLESS = frozenset({EMPTY_TEXT, EMPTY_FILE})
"""nothing was lost, so these do not count towards `max_bad_share`"""


class Record(NamedTuple):
    """A document, or (with a reason) a part of a file that is not one.

    `offset` is the byte at which its line (.jsonl) or first line (.txt) begins in the
    decompressed file, or its row number (.parquet). `lost_bytes` are stored bytes that could not
    be read at all.
    """

    offset: int
    text: bytes = b""
    domain: str = ""
    reason: str = ""
    detail: str = ""
    lost_bytes: int = 0


def checked(offset: int, text: object, domain: object, max_bytes: int) -> Record:
    """The document, when its text is a string of valid UTF-8 (or such bytes) that fits."""
    if text is None:
        return Record(offset, reason=MISSING_TEXT, detail="null")
    if not isinstance(text, str | bytes):
        return Record(offset, reason=TEXT_NOT_STRING, detail=type(text).__name__)
    try:
        data = text.encode() if isinstance(text, str) else text
        if isinstance(text, bytes):
            text.decode()
        name = domain.decode() if isinstance(domain, bytes) else str(domain or "")
        name.encode()
    except UnicodeError as error:
        return Record(offset, reason=INVALID_UTF8, detail=str(error)[-200:])
    if len(data) > max_bytes:
        return Record(offset, reason=TOO_LONG, detail=f"a text of {len(data)} bytes")
    if not data or data.isspace():
        return Record(offset, reason=EMPTY_TEXT)
    return Record(offset, data, name)
