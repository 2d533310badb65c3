"""The documents that are to be erased: one a line, by digest, by place, by text or by metadata."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.corpora.ingest.partition import digest_text
from perennial.errors import InputError
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

_DIGEST = re.compile("[0-9a-f]{16}([0-9a-f]{2})*")
_DIGEST_BYTES = 8
_TRACED = frozenset({"corpus", "row", "start", "tokens", "before"})
"""fields of a line of `perennial trace --json` that say nothing about which document it is"""
_REMEDY = (
    'one document a line: the digest that `perennial trace` shows, or {"digest": ...}, '
    '{"file": ..., "offset": ...}, {"text": ...}, or {COLUMN: VALUE} of corpora.metadata'
)
_OFFSET_BITS = 44
"""an offset in a file, which has at most 16 TiB"""


@dataclass(frozen=True)
class DocumentQuery:
    """One line: what a document must have to be meant, all of it.

    line: its number, from 1.
    digest: the first 8 bytes of the sha256 of its text, as a span has them; None for any.
    place: name of its file and its offset there; None for any.
    metadata: values by column.
    """

    line: int
    digest: int | None = None
    place: tuple[str, int] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def is_among(self, digests: Collection[str]) -> bool:
        """Return whether its digest is one of these."""
        return self.digest is not None and digest_digits(self.digest) in digests


def digest_number(digest: str) -> int:
    """Return the digits of a digest, or of a whole sha256, as spans and tables have them."""
    return int.from_bytes(bytes.fromhex(digest[: 2 * _DIGEST_BYTES]), "little")


def digest_digits(number: int) -> str:
    """Return a digest as users see it."""
    return number.to_bytes(_DIGEST_BYTES, "little").hex()


def digest_of_text(text: str) -> str:
    """Return the digest of a document's text as users see it."""
    return digest_digits(digest_bytes(text.encode(errors="surrogatepass")))


def digest_bytes(text: bytes) -> int:
    """Return the digest of a document's bytes as spans have it."""
    return int.from_bytes(digest_text(text)[:_DIGEST_BYTES], "little")


def parse_documents(where: str, data: bytes, columns: Iterable[str]) -> list[DocumentQuery]:
    """Return the documents that a file names.

    Args:
        where: path of the file, for messages.
        data: its bytes; empty lines and those that begin with # say nothing.
        columns: of the metadata that the corpus keeps.

    Raises:
        InputError: a line names no document.
    """
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as wrong:
        problem = f"it is no UTF-8 ({wrong.reason})"
        raise InputError(where, "", problem, _REMEDY, code="documents-unreadable") from None
    known = frozenset(columns)
    named = [
        _parse_line(where, number, line.strip(), known)
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not named:
        raise InputError(where, "", "it names no document", _REMEDY, code="documents-unreadable")
    return named


def _parse_line(where: str, number: int, line: str, columns: frozenset[str]) -> DocumentQuery:
    if _DIGEST.fullmatch(line.lower()):
        return DocumentQuery(number, digest_number(line.lower()))
    try:
        document = parse_json(line)
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
        return _read_query(number, document, columns)
    except (ValueError, RecursionError) as wrong:
        raise InputError(
            where, f"line {number}", " ".join(str(wrong).split())[:200], _REMEDY,
            code="documents-unreadable",
        ) from None  # fmt: skip


def _read_query(number: int, document: dict[str, Any], columns: frozenset[str]) -> DocumentQuery:
    values = {key: value for key, value in document.items() if key not in _TRACED}
    metadata = values.pop("metadata", {})
    digest, text = values.pop("digest", None), values.pop("text", None)
    file, offset = values.pop("file", None), values.pop("offset", None)
    if digest is None and text is not None:
        digest = digest_of_text(text) if isinstance(text, str) else text
    if digest is not None and not (isinstance(digest, str) and _DIGEST.fullmatch(digest.lower())):
        raise ValueError(f"digest: {digest!r} is none: at least 16 hexadecimal digits")
    place = None
    if file is not None or offset is not None:
        if not isinstance(file, str) or not isinstance(offset, int) or not _is_offset(offset):
            raise ValueError("file and offset: a name and a number, both of them")
        place = file, offset
    if not isinstance(metadata, dict):
        raise ValueError("metadata: it is no JSON object")
    # Of a span that was traced, its own digest and place say more.
    if digest is None and place is None:
        values |= metadata
    for column, value in values.items():
        if column not in columns:
            kept = ", ".join(sorted(columns)) or "none"
            raise ValueError(f"{column}: the corpus keeps no such metadata (it keeps {kept})")
        if not isinstance(value, str):
            raise ValueError(f"{column}: {value!r} is no text")
    if digest is None and place is None and not values:
        raise ValueError("it names no document")
    return DocumentQuery(
        number, None if digest is None else digest_number(digest.lower()), place, values
    )


def _is_offset(offset: int) -> bool:
    return 0 <= offset < 1 << _OFFSET_BITS


class Matcher:
    """Finds the documents of queries in tables of spans and among held-out documents.

    Args:
        queries: the documents.
        files: names of the corpus's files, in the order in which spans number them.

    Attributes:
        matched_lines: numbers of the lines that a document was found for.
    """

    def __init__(self, queries: Iterable[DocumentQuery], files: Iterable[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(files)}
        self.matched_lines: set[int] = set()
        self._single: list[DocumentQuery] = []
        self._digests: dict[int, list[int]] = {}
        self._places: dict[int, list[int]] = {}
        for query in queries:
            if query.metadata or (query.digest is not None and query.place is not None):
                self._single.append(query)
            elif query.digest is not None:
                self._digests.setdefault(query.digest, []).append(query.line)
            elif (place := self._place_of(query)) is not None:
                self._places.setdefault(place, []).append(query.line)

    def _place_of(self, query: DocumentQuery) -> int | None:
        """Return a place as one number; None for a file that the corpus does not have."""
        if query.place is None or query.place[0] not in self._numbers:
            return None
        return self._numbers[query.place[0]] << _OFFSET_BITS | query.place[1]

    def match(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Return which spans of a table `(spans)` are of documents that are meant."""
        digests = table["digest"].to_numpy()
        files = table["file"].to_numpy().astype(np.uint64)
        offsets = table["offset"].to_numpy().astype(np.uint64)
        places = files << np.uint64(_OFFSET_BITS) | offsets
        chosen = self._among(digests, self._digests) | self._among(places, self._places)
        for query in self._single:
            mine = np.ones(len(table), dtype=np.bool_)
            if query.digest is not None:
                mine &= digests == np.uint64(query.digest)
            if query.place is not None:
                place = self._place_of(query)
                mine &= places == np.uint64(place) if place is not None else False
            for column, value in query.metadata.items():
                mine &= _equals(table, column, value)
            if mine.any():
                self.matched_lines.add(query.line)
            chosen |= mine
        return chosen

    def _among(
        self, values: npt.NDArray[np.uint64], wanted: Mapping[int, list[int]]
    ) -> npt.NDArray[np.bool_]:
        chosen = np.isin(values, np.array([*wanted], dtype=np.uint64))
        for value in np.unique(values[chosen]).tolist():
            self.matched_lines.update(wanted[value])
        return chosen

    def matches_place(self, file: str, offset: int) -> bool:
        """Return whether a record of a file is meant, which has no other name; see `match`."""
        lines = self._places.get(self._numbers.get(file, -1) << _OFFSET_BITS | offset, [])
        self.matched_lines.update(lines)
        return bool(lines)

    def matches_held_out(self, digest: int, domain: str) -> bool:
        """Return whether a held-out document is meant, of which no place is kept."""
        lines = [*self._digests.get(digest, [])]
        for query in self._single:
            its = query.metadata
            if (query.digest is None or query.digest == digest) and (
                its == {"domain": domain}
                if query.digest is None
                else its in ({}, {"domain": domain})
            ):
                lines.append(query.line)
        self.matched_lines.update(lines)
        return bool(lines)


def _equals(table: pa.Table, column: str, value: str) -> npt.NDArray[np.bool_]:
    import pyarrow.compute as pc

    if column not in table.column_names:
        return np.zeros(len(table), dtype=np.bool_)
    equal = pc.fill_null(pc.equal(table[column].cast("string"), value), False)
    return np.asarray(equal.to_numpy(zero_copy_only=False), dtype=np.bool_)
