"""Sources of kind `index`: files that a page of links, or a JSON list, names over HTTP(S)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
from urllib3.exceptions import ProtocolError

from perennial.errors import PullFailed, PullRefused
from perennial.redaction import HIDDEN
from perennial.sources.address import show_address
from perennial.sources.base import Candidate, FetchedFile, Pull, one_line
from perennial.sources.http_client import FeedClient, announced_bytes, is_chunked, read_pieces
from perennial.sources.listing import Entry, Listing, read_index

_INDEX_BYTES = 64 << 20
_GONE = (404, 410)
_ENCODINGS = {"gzip": ".gz", "x-gzip": ".gz", "zstd": ".zst"}
_LONGEST_VERSION = 256


def fetch_index(index: str, pull: Pull) -> Iterator[FetchedFile]:
    """Yield every file that is new or has changed.

    A file has changed when the index gives it another `version`; where it gives none, when the
    server gives it another ETag or Last-Modified. A file with none of them never changes.

    Args:
        index: address of the index.
        pull: the pull to fill.

    Raises:
        PullFailed: when the index cannot be read. A file that cannot be had is noted instead.
    """
    if HIDDEN in index:
        raise PullFailed(
            "the secret of the index's address is not kept in the store; name the run file instead "
            "of the store"
        )
    with FeedClient(pull) as client:
        listing = client.get(index, {}, _receive_index)
        for number, problem in listing.wrong.items():
            place = f"entry {number} of {show_address(index, pull.secrets)}"
            pull.note(place, PullRefused(f"{place} is left out: {problem}"))
        candidates = [
            Candidate(origin, entry.version, partial(_fetch, client, entry, origin, pull))
            for origin, entry in _choose(index, listing, pull)
        ]
        for fetched in pull.fetch_each(candidates):
            yield fetched
            pull.watermark = fetched.origin


def _choose(index: str, listing: Listing, pull: Pull) -> Iterator[tuple[str, Entry]]:
    """Yield the files that may be new, in the order of addresses, each with its origin."""
    folder = unquote(urlsplit(index).path).rpartition("/")[0] + "/"
    urls: dict[str, str] = {}
    for entry in sorted(set(listing.entries), key=lambda entry: (entry.url, entry.version)):
        # Above the index's folder, and beside it, paths are the choice of who made the index.
        path = _name(entry)
        below = path.startswith(folder)
        if not pull.wants(path.removeprefix(folder) if below else path.rpartition("/")[2]):
            continue
        origin = show_address(entry.url, pull.secrets)
        identity = pull.identify(origin)
        if urls.setdefault(identity, entry.url) != entry.url:
            problem = "differs from another address only in parameters that are taken for secrets"
            pull.note(f"a second {origin}", PullRefused(f"{origin} is left out: it {problem}"))
        elif pull.seen.get(identity) != entry.version:
            # Otherwise unchanged, or without any version to compare.
            yield origin, entry


def _name(entry: Entry) -> str:
    return unquote(urlsplit(entry.url).path)


def _receive_index(answer: requests.Response) -> Listing:
    """Read an index page."""
    _check_status(answer)
    announced_bytes(answer)
    pieces, size = [], 0
    for piece in read_pieces(answer, decode=True):
        pieces.append(piece)
        size += len(piece)
        if size > _INDEX_BYTES:
            raise PullFailed(f"is longer than {_INDEX_BYTES >> 20} MiB")
    # A page without an end that is marked may lack links, which the next pull finds; JSON that is
    # cut off is none.
    return read_index(answer.url, b"".join(pieces).decode("utf-8-sig", errors="replace"))


def _fetch(client: FeedClient, entry: Entry, origin: str, pull: Pull) -> FetchedFile | None:
    """Return a file if it is new or has changed."""
    seen = pull.seen.get(pull.identify(origin))
    known = None if entry.version else seen
    kind, _, value = (known or "").partition(":")
    condition = {"etag": "If-None-Match", "modified": "If-Modified-Since"}.get(kind)
    headers = {condition: value} if condition else {}
    local = pull.folder / "file"
    receive = partial(_receive_file, entry=entry, known=known, local=local, pull=pull)
    version = client.get(entry.url, headers, receive)
    if version is None:
        pull.passed_over += 1
    if version is None or version == known:
        return None
    return FetchedFile(local, _name(entry), origin, entry.version or version)


def _receive_file(
    answer: requests.Response, entry: Entry, known: str | None, local: Path, pull: Pull
) -> str | None:
    """Download a file unless its version is `known`. Returns its version, None when it is gone."""
    if answer.status_code == 304 and known:
        return known
    if answer.status_code in _GONE:
        return None
    _check_status(answer)
    version = _read_version(answer)
    # A server may ignore the condition and send the whole file again.
    if version != known or known is None:
        _check_encoding(answer, _name(entry))
        _write(answer, entry, local, pull)
    return version


def _write(answer: requests.Response, entry: Entry, local: Path, pull: Pull) -> None:
    """Write a body into a local file, and check that it is whole and what the index promises."""
    announced, promised = announced_bytes(answer), entry.size_bytes
    for length in (promised, announced):
        pull.check_size(length or 0)
    if announced is not None and promised not in (None, announced):
        raise PullFailed(f"has {announced:,} bytes, and the index says {promised:,}")
    marked = announced is not None or is_chunked(answer)
    if not (marked or promised is not None or entry.sha256 or pull.spec.unsized):
        raise PullRefused(
            "does not say how long it is, so that it may be cut off; ask for Content-Length, give "
            "`bytes` or `sha256` in the index, or set `unsized: true`"
        )
    digest, size = hashlib.sha256(), 0
    with local.open("wb") as sink:
        for piece in read_pieces(answer, decode=False):
            size += len(piece)
            pull.spend(len(piece))
            if promised is not None and size > promised:
                raise PullRefused(f"is longer than the {promised:,} bytes that the index says")
            pull.check_size(size, copied=True)
            digest.update(piece)
            sink.write(piece)
    for length, place in ((announced, "the server announced"), (promised, "the index says")):
        if length not in (None, size):
            raise ProtocolError(f"the body ended after {size:,} bytes, where {place} {length:,}")
    if entry.sha256 and digest.hexdigest() != entry.sha256:
        raise PullFailed("is not the file that the index describes: its sha256 differs")


def _check_status(answer: requests.Response) -> None:
    if answer.status_code != 200:
        raise PullFailed(one_line(f"answered {answer.status_code} {answer.reason or ''}"))


def _check_encoding(answer: requests.Response, name: str) -> None:
    """Refuse a body that was compressed unasked, unless the file's own name says so."""
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity") or name.lower().endswith(_ENCODINGS.get(encoding, "\0")):
        return
    raise PullFailed(one_line(f"came with Content-Encoding {encoding}, which was not asked for"))


def _read_version(answer: requests.Response) -> str:
    """Return what the server distinguishes contents by, such as `etag:"1"`; "" for nothing."""
    for kind, header in (("etag", "ETag"), ("modified", "Last-Modified")):
        value = answer.headers.get(header, "").strip()
        if value and len(value) <= _LONGEST_VERSION:
            return f"{kind}:{value}"
    return ""
