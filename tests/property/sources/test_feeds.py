"""Any index, whatever it holds: what is fetched is on the feed's host, and nothing raises."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from hypothesis import given
from hypothesis import strategies as st

from perennial.config import SourceSpec, parse
from perennial.corpora import find_kind
from perennial.errors import PullFailed, PullRefused
from perennial.sources.address import AddressRules, identify, show_address
from perennial.sources.base import make_file_name, one_line
from perennial.sources.listing import Listing, read_index

INDEX = "https://feed.org/data/"
RULES = AddressRules.of(parse({"index": INDEX, "schedule": "1d"}, SourceSpec, "test"))
TEXTS = st.text(st.characters(codec=None), max_size=30)
PIECES = st.sampled_from(
    [
        *(
            "https://",
            "http:",
            "//",
            "/",
            "\\",
            "@",
            ":",
            "feed.org",
            "evil.org",
            "127.0.0.1",
            "::1",
        ),
        *("[", "]", "#", "?", "%2e", "%00", "..", "\t", " ", "a.txt", "\ud800", "file:", ":443"),
    ]
)
LINKS = st.one_of(TEXTS, st.lists(PIECES, max_size=7).map("".join))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), LINKS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
ENTRIES = st.one_of(
    LINKS,
    JSON,
    st.fixed_dictionaries(
        {"url": LINKS}, optional={"version": JSON, "bytes": JSON, "sha256": JSON}
    ),
)
INDEXES = st.one_of(
    st.lists(ENTRIES, max_size=5).map(json.dumps),
    st.lists(ENTRIES, max_size=5).map(lambda entries: json.dumps({"files": entries})),
    st.lists(LINKS, max_size=5).map(lambda links: "".join(f'<a href="{link}">' for link in links)),
    TEXTS,
)


def read(text: str) -> Listing:
    try:
        return read_index(INDEX, text)
    except PullFailed:
        return Listing([], {})


@given(text=INDEXES, cut=st.integers(0, 60))
def test_an_index_of_anything_gives_files_of_its_own_host(text: str, cut: int) -> None:
    listings = [read(text), read(text[:-cut])]
    for entry in (entry for listing in listings for entry in listing.entries):
        shown = show_address(entry.url)
        assert show_address(shown) == shown
        assert identify(shown) == identify(identify(shown))
        assert shown.encode()
        try:
            parts = urlsplit(RULES.check_url(entry.url))
        except PullRefused as refused:
            assert one_line(str(refused)).isprintable()
            continue
        assert (parts.scheme, parts.hostname, parts.username) == ("https", "feed.org", None)
        assert parts.port in (None, 80, 443)


@given(name=TEXTS)
def test_a_name_of_anything_is_plain_and_keeps_its_kind(name: str) -> None:
    made = make_file_name(1, 2, f"{name}.txt")
    assert made.isascii()
    assert made.startswith("000001-000002-")
    assert not set(made) & set("/\\\0 ")
    assert len(made) <= 140
    assert find_kind(made) is not None


def test_the_entries_that_can_be_read_are_taken() -> None:
    listed: list[Any] = ["a.txt", 1, None, {"url": "b.txt", "bytes": "7"}, {"url": "c.txt"}]
    listing = read_index(INDEX, json.dumps(listed))
    assert [entry.url for entry in listing.entries] == [f"{INDEX}a.txt", f"{INDEX}c.txt"]
    assert list(listing.wrong) == [2, 3, 4]
