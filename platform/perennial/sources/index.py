"""Sources of kind `index`: files that a page of links, or a JSON list, names over HTTP(S)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import requests
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)
from urllib3.exceptions import HTTPError

from perennial.errors import PullFailed, Unsteady
from perennial.sources.base import FetchedFile, Pull
from perennial.tracking.redaction import hide_secrets

T = TypeVar("T")

ATTEMPTS = 4
FIRST_WAIT_SECONDS = 1.0
_TIMEOUT_SECONDS = (10, 60)  # to connect, and between two pieces of an answer
_INDEX_BYTES = 64 << 20
_GONE = (404, 410)


class Entry(NamedTuple):
    """A file that the index names; `version` is "" where the index gives none."""

    url: str
    version: str = ""


def fetch_index(index: str, pull: Pull) -> Iterator[FetchedFile]:
    """Yield every file that is new or has changed, in the order of addresses.

    A file has changed when the index gives it another `version`; where it gives none, when the
    server gives it another ETag or Last-Modified. A file with none of them never changes.

    Args:
        index: address of the index.
        pull: the pull to fill.

    Raises:
        PullFailed: when the index or a file cannot be read.
    """
    with requests.Session() as session:
        # Some servers declare .gz files as an encoding, and requests would then decompress them.
        session.headers["Accept-Encoding"] = "identity"
        entries = read_index(*_read_page(session, index))
        for entry in sorted(set(entries)):
            origin = hide_secrets(entry.url)
            name = unquote(urlsplit(entry.url).path)
            if not pull.wants(name):
                continue
            seen = pull.seen.get(origin)
            if seen is not None and seen == entry.version:
                continue  # unchanged, or without any version to compare
            known = None if entry.version else seen
            local = pull.folder / "file"
            version = _retry(entry.url, partial(_download, session, entry.url, known, local))
            if version is None:
                pull.passed_over += 1
            elif version != known:
                yield FetchedFile(local, name, origin, entry.version or version)
                pull.watermark = origin


def read_index(url: str, text: str) -> list[Entry]:
    """Return the files that an index names, as absolute addresses.

    A JSON index is a list, or an object with a list `files`, of addresses or of objects with `url`
    and optionally `version`. Of an HTML page the links to below its own folder are taken: others
    lead to parent folders, sort orders and other sites.

    Args:
        url: address of the index.
        text: its content.

    Raises:
        PullFailed: for other JSON.
    """
    if text.lstrip()[:1] in ("[", "{"):
        return _parse_json(url, text)
    parser = _LinkParser()
    parser.feed(text)
    folder = urljoin(url, ".")
    links = (urldefrag(urljoin(url, link)).url for link in parser.links)
    return [Entry(link) for link in links if link.startswith(folder) and link != folder]


def _parse_json(url: str, text: str) -> list[Entry]:
    wrong = PullFailed(
        f"{hide_secrets(url)} is no index: give a JSON list of addresses, or of objects with `url`"
    )
    try:
        listed: Any = json.loads(text)
    except ValueError:
        raise wrong from None
    if isinstance(listed, dict):
        listed = listed.get("files")
    if not isinstance(listed, list):
        raise wrong
    entries = []
    for item in listed:
        fields = {"url": item} if isinstance(item, str) else item
        if not isinstance(fields, dict) or not isinstance(fields.get("url"), str):
            raise wrong
        link = urldefrag(urljoin(url, fields["url"])).url
        if urlsplit(link).scheme not in ("http", "https"):
            raise wrong
        entries.append(Entry(link, str(fields.get("version", ""))))
    return entries


class _LinkParser(HTMLParser):
    """Collects the targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "a" and target:
            self.links.append(target)


def _read_page(session: requests.Session, url: str) -> tuple[str, str]:
    """Return the index's address after redirects, and its text."""

    def get() -> tuple[str, str]:
        with _request(session, url, {}) as answer:
            _check_status(url, answer)
            data = answer.raw.read(_INDEX_BYTES + 1, decode_content=True)
            if len(data) > _INDEX_BYTES:
                raise PullFailed(f"{hide_secrets(url)} is longer than {_INDEX_BYTES >> 20} MiB")
            return answer.url, data.decode(errors="replace")

    return _retry(url, get)


def _download(session: requests.Session, url: str, known: str | None, local: Path) -> str | None:
    """Download a file unless its version is `known`. Returns its version, None when it is gone."""
    kind, _, value = (known or "").partition(":")
    condition = {"etag": "If-None-Match", "modified": "If-Modified-Since"}.get(kind)
    with _request(session, url, {condition: value} if condition else {}) as answer:
        if answer.status_code == 304:
            return known
        if answer.status_code in _GONE:
            return None
        _check_status(url, answer)
        version = _read_version(answer)
        # A server may ignore the condition and send the whole file again.
        if version != known:
            with local.open("wb") as sink:
                for piece in answer.raw.stream(1 << 20, decode_content=False):
                    sink.write(piece)
        return version


def _request(session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
    """Send a GET request. Raises Unsteady for an answer that another try may better."""
    answer = session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS)
    if answer.status_code == 429 or answer.status_code >= 500:
        answer.close()
        raise Unsteady(f"{hide_secrets(url)} answered {answer.status_code}")
    return answer


def _check_status(url: str, answer: requests.Response) -> None:
    if answer.status_code != 200:
        raise PullFailed(f"{hide_secrets(url)} answered {answer.status_code} {answer.reason}")


def _read_version(answer: requests.Response) -> str:
    """Return what the server distinguishes contents by, such as `etag:"1"`; "" for nothing."""
    for kind, header in (("etag", "ETag"), ("modified", "Last-Modified")):
        if value := answer.headers.get(header):
            return f"{kind}:{value}"
    return ""


def _retry(url: str, call: Callable[[], T]) -> T:
    """Call a function again, with growing waits, while it fails in a way that may pass."""
    transient = (requests.ConnectionError, requests.Timeout, HTTPError, Unsteady)
    tries = Retrying(
        retry=retry_if_exception_type(transient),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential_jitter(multiplier=FIRST_WAIT_SECONDS, max=30),
        reraise=True,
    )
    try:
        return tries(call)
    except Unsteady as failed:
        raise PullFailed(str(failed)) from None
    except (requests.RequestException, HTTPError) as failed:
        # Both wrap the one line that says what the user can do something about.
        inner = getattr(failed.args[0] if failed.args else None, "reason", failed)
        reason = hide_secrets(str(inner).rpartition(": ")[2])
        raise PullFailed(f"{hide_secrets(url)} cannot be read: {reason}") from failed
