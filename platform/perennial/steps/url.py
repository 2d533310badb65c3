"""The address of a document: domains, words and endings whose documents are dropped."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import Field, model_validator

from perennial.errors import InputError
from perennial.fields import PathText
from perennial.steps.base import STEPS, Apply, Dropped, RawDocument, StepConfig

UrlList = Literal["domains", "words", "substrings", "suffixes"]

_SCHEME = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//")
_NOT_WORD = re.compile(r"[\W_]+")


class _Never(NamedTuple):
    """Entries of a list that no URL can match: their pattern, why, and what would be right."""

    pattern: re.Pattern[str]
    problem: str
    remedy: str


_NEVER: dict[str, _Never] = {
    "domains": _Never(
        re.compile(r"[\s/:*?#@,]"),
        "it is no name of a host",
        "write the name alone, such as example.org, which all below it have too",
    ),
    "words": _Never(
        re.compile(r"[\W_]"),
        "words end at signs that are neither letters nor digits",
        "write it as one of the substrings",
    ),
}


class _ListFile(NamedTuple):
    entries: frozenset[str]
    sha256: str


@STEPS.register("url-filter")
class UrlFilterConfig(StepConfig):
    """Drop documents by their URL, which a field of the document holds.

    Nothing is downloaded. Case is ignored, and so are percent signs that stand for letters. A name
    of a host may be spelled with letters of any script or in the ASCII form that begins with xn--.
    """

    version: ClassVar[int] = 2

    kind: Literal["url-filter"] = "url-filter"
    """name of the step"""
    field: str = "url"
    """the field or column of a document that holds its URL; as `corpora.text_field`, it may be
    `meta.url`, and in web archives it is a field of a record's header: `WARC-Target-URI`"""
    domains: tuple[str, ...] = ()
    """hosts that are dropped with all below them: `example.org`, or an ending such as `co.uk`"""
    words: tuple[str, ...] = ()
    """words that no URL may hold, between signs that are neither letters nor digits"""
    substrings: tuple[str, ...] = ()
    """texts that no URL may hold, anywhere in it"""
    suffixes: tuple[str, ...] = ()
    """ends of a path, such as `.pdf`"""
    files: dict[UrlList, PathText] = Field(default_factory=dict)
    """more of each, by the name of its list: a local UTF-8 file with one a line, at the same path
    on every node that ingests; lines that begin with # are left out"""
    without_url: Literal["drop", "keep"] = "drop"
    """what becomes of a document without a URL"""

    @model_validator(mode="after")
    def _lists_something(self) -> UrlFilterConfig:
        given = (*self.domains, *self.words, *self.substrings, *self.suffixes)
        if not (any(entry.strip() for entry in given) or self.files):
            raise ValueError("give at least one of domains, words, substrings, suffixes and files")
        return self

    @property
    def document_fields(self) -> tuple[str, ...]:
        """Return the field of the URL."""
        return (self.field,)

    def fingerprint(self) -> str:
        """Return the step's version with the digests of its files."""
        digests = (f"{name} sha256 {self._read(name).sha256}" for name in sorted(self.files))
        return " ".join([super().fingerprint(), *digests])

    def build(self) -> Apply:
        """Return the step as a function."""
        domains = {_to_ascii(domain.strip(".")) for domain in self._gather("domains")}
        words = self._gather("words")
        substrings = sorted(map(unquote, self._gather("substrings")))
        ends = tuple(sorted(self._gather("suffixes")))

        def judge(document: RawDocument) -> str | Dropped:
            given = document.fields.get(self.field, "").strip()
            if not given:
                return document.text if self.without_url == "keep" else Dropped("no-url")
            url = unquote(given).lower()
            host, path = _split(url)
            if (domain := _find_domain(_to_ascii(host), domains)) is not None:
                return Dropped("domain", f"{domain} in {given}")
            if words and (held := words.intersection(_NOT_WORD.split(url))):
                return Dropped("word", f"{min(held)} in {given}")
            if (part := next((s for s in substrings if s in url), None)) is not None:
                return Dropped("substring", f"{part} in {given}")
            if ends and path.endswith(ends):
                return Dropped("suffix", given)
            return document.text

        return judge

    def _gather(self, name: UrlList) -> frozenset[str]:
        """Return the entries of one list, those of its file included."""
        own: tuple[str, ...] = getattr(self, name)
        entries = frozenset(entry.strip().lower() for entry in own) - {""}
        entries = entries | self._read(name).entries if name in self.files else entries
        never = _NEVER.get(name)
        strange = min(filter(never.pattern.search, entries), default=None) if never else None
        if never and strange is not None:
            raise InputError(
                "run file",
                "corpora.steps",
                f"url-filter.{name}: {strange!r} would match no URL: {never.problem}",
                never.remedy,
                code="step-unusable",
            )
        return entries

    def _read(self, name: UrlList) -> _ListFile:
        path = Path(self.files[name])
        try:
            status = path.stat()
            return _read_list(path, status.st_size, status.st_mtime_ns)
        except (OSError, UnicodeError) as error:
            raise InputError(
                "run file",
                "corpora.steps",
                f"url-filter.files.{name}: {path} cannot be read: {error}",
                "name a UTF-8 file that every node that ingests has at that path",
                code="step-unusable",
            ) from error


@lru_cache(maxsize=8)
def _read_list(path: Path, _size: int, _changed: int) -> _ListFile:
    """Return the entries of a file; its size and time of change tell one content from another."""
    data = path.read_bytes()
    lines = (line.strip().lower() for line in data.decode("utf-8-sig").splitlines())
    entries = frozenset(line for line in lines if line and not line.startswith("#"))
    return _ListFile(entries, hashlib.sha256(data).hexdigest())


def _split(url: str) -> tuple[str, str]:
    """Return the host and the path of a URL, with or without its scheme."""
    try:
        parts = urlsplit(url if _SCHEME.match(url) else f"//{url}")
        return (parts.hostname or "").rstrip("."), parts.path
    except ValueError:  # a bracket that is not closed
        return "", url


def _to_ascii(host: str) -> str:
    """Return a host as the name system has it: `xn--mller-kva.de` for `m\u00fcller.de`."""
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode()
    except UnicodeError:  # no name of any host
        return host


def _find_domain(host: str, domains: set[str]) -> str | None:
    """Return the longest listed domain that a host is in."""
    while host:
        if host in domains:
            return host
        host = host.partition(".")[2]
    return None
