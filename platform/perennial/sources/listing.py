"""What an index names: the links of a page, or the entries of a JSON list."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any, NamedTuple
from urllib.parse import urldefrag, urljoin, urlsplit

from perennial.errors import PullFailed
from perennial.store.stored_json import parse_json

MOST_ENTRIES = 500_000
_MOST_MARKS = 8 * MOST_ENTRIES  # commas and brackets: an entry has at most so many
_LONGEST_PAGE = 16 << 20  # characters; reading 1 Mi of them takes up to 4 s
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_HALF = re.compile("[\ud800-\udfff]")  # JSON can name one alone, and UTF-8 has none
_LONGEST_ADDRESS = 8192
_LONGEST_VERSION = 1024


class Entry(NamedTuple):
    """A file that the index names.

    Attributes:
        url: its absolute address.
        version: "" where the index gives none.
        size_bytes: None where the index gives none.
        sha256: in lower case; "" where the index gives none.
    """

    url: str
    version: str = ""
    size_bytes: int | None = None
    sha256: str = ""


class Listing(NamedTuple):
    """The files of an index, and what is wrong with its other entries by their numbers, from 1."""

    entries: list[Entry]
    wrong: dict[int, str]


def read_index(url: str, text: str) -> Listing:
    """Return the files that an index names, as absolute addresses.

    A JSON index is a list, or an object with a list `files`, of addresses or of objects with `url`
    and optionally `version`, `bytes` and `sha256`. Of an HTML page the links to below its own
    folder are taken: others lead to parent folders, sort orders and other sites.

    Args:
        url: address of the index.
        text: its content.

    Raises:
        PullFailed: for other JSON, and for too many entries.
    """
    if text.lstrip()[:1] in ("[", "{"):
        return _parse_json(url, text)
    if len(text) > _LONGEST_PAGE:
        limit = f"{_LONGEST_PAGE >> 20} MiB"
        raise PullFailed(f"is a page of more than {limit}; divide it, or write it as a JSON list")
    parser = _LinkParser()
    try:
        parser.feed(text)
    except AssertionError as wrong:
        raise PullFailed(f"is a page that cannot be read: {wrong}") from None
    folder = urljoin(url, ".")
    links = (_join(url, link) for link in parser.links)
    inside = [Entry(link) for link in links if link and link.startswith(folder) and link != folder]
    return Listing(inside, {})


def _parse_json(url: str, text: str) -> Listing:
    # Before the text becomes objects, which take 30 times its size.
    if sum(map(text.count, ",[{")) > _MOST_MARKS:
        raise PullFailed(f"names more than {MOST_ENTRIES:,} files; divide it into several indexes")
    try:
        listed: Any = parse_json(text)
    except ValueError:
        listed = None
    if isinstance(listed, dict):
        listed = listed.get("files")
    if not isinstance(listed, list):
        raise PullFailed(
            "is no index: give a JSON list of addresses, or of objects with `url`, or an object "
            "with such a list as `files`"
        )
    listing = Listing([], {})
    for number, item in enumerate(listed, 1):
        fields = {"url": item} if isinstance(item, str) else item
        try:
            listing.entries.append(_parse_entry(url, fields))
        except ValueError as wrong:
            listing.wrong[number] = str(wrong)
    return listing


def _parse_entry(url: str, fields: Any) -> Entry:
    """Return the file that a JSON object names. Raises ValueError for another object."""
    if not isinstance(fields, dict) or not isinstance(fields.get("url"), str):
        raise ValueError("it is neither an address nor an object with `url`")
    link = _join(url, fields["url"])
    if not link:
        raise ValueError("its `url` is no address")
    version = str(fields.get("version", ""))
    for name, text in (("url", fields["url"]), ("version", version)):
        if _HALF.search(text):
            raise ValueError(f"its `{name}` has half of a character, which no store takes")
    if len(version) > _LONGEST_VERSION:
        raise ValueError(f"its `version` has more than {_LONGEST_VERSION} characters")
    size = fields.get("bytes")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise ValueError("its `bytes` is no whole number")
    sha256 = fields.get("sha256")
    if sha256 is not None and (not isinstance(sha256, str) or not _SHA256.fullmatch(sha256)):
        raise ValueError("its `sha256` is not 64 hexadecimal digits")
    return Entry(link, version, size, (sha256 or "").lower())


def _join(url: str, link: str) -> str:
    """Return a link as an absolute address without its fragment; "" for what is none."""
    try:
        joined = urldefrag(urljoin(url, link)).url
        return joined if urlsplit(joined).netloc and len(joined) <= _LONGEST_ADDRESS else ""
    except ValueError:
        return ""


class _LinkParser(HTMLParser):
    """Collects the targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "a" and target:
            self.links.append(target)
