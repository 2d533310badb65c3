"""New and changed files that an HTTP(S) index names: a page of links, or a JSON list."""

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
    """One file that the index names; `version` only where the index tells it."""

    url: str
    version: str = ""


def fetch_index(index: str, pull: Pull) -> Iterator[FetchedFile]:
    """Every file that is new or has changed, in the order of addresses.

    Whether a file that was pulled before has changed, the index's own `version` tells, else the
    server by ETag or Last-Modified; a file with none of them is taken as fixed.
    """
    with requests.Session() as session:
        # As they are: a server that "encodes" .gz files would have them unpacked on the way.
        session.headers["Accept-Encoding"] = "identity"
        entries = read_index(*_page(session, index))
        for entry in sorted(set(entries)):
            origin = hide_secrets(entry.url)
            name = unquote(urlsplit(entry.url).path)
            if not pull.wants(name):
                continue
            seen = pull.seen.get(origin)
            if seen is not None and seen == entry.version:
                continue  # the index says so, or nobody could say otherwise
            known = None if entry.version else seen
            local = pull.folder / "file"
            version = _patiently(entry.url, partial(_download, session, entry.url, known, local))
            if version is None:
                pull.passed_over += 1
            elif version != known:
                yield FetchedFile(local, name, origin, entry.version or version)
                pull.watermark = origin


def read_index(url: str, text: str) -> list[Entry]:
    """The files that an index names, as absolute addresses.

    JSON: a list, or an object with a list `files`, of addresses or of objects with `url` and maybe
    `version`. HTML: links to below the page's own folder. Raises PullFailed for other JSON.
    """
    if text.lstrip()[:1] in ("[", "{"):
        return _of_json(url, text)
    links = _Links()
    links.feed(text)
    folder = urljoin(url, ".")
    found = (urldefrag(urljoin(url, link)).url for link in links.found)
    return [Entry(link) for link in found if link.startswith(folder) and link != folder]


def _of_json(url: str, text: str) -> list[Entry]:
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


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "a" and target:
            self.found.append(target)


def _page(session: requests.Session, url: str) -> tuple[str, str]:
    """The index's address after redirects, and its text."""

    def get() -> tuple[str, str]:
        with _answer(session, url, {}) as answer:
            _refuse(url, answer)
            data = answer.raw.read(_INDEX_BYTES + 1, decode_content=True)
            if len(data) > _INDEX_BYTES:
                raise PullFailed(f"{hide_secrets(url)} is longer than {_INDEX_BYTES >> 20} MiB")
            return answer.url, data.decode(errors="replace")

    return _patiently(url, get)


def _download(session: requests.Session, url: str, known: str | None, local: Path) -> str | None:
    """Copy what is at `url` to `local`; its version, None when it is gone.

    Nothing is copied when that is the version that is known already.
    """
    kind, _, value = (known or "").partition(":")
    asked = {"etag": "If-None-Match", "modified": "If-Modified-Since"}.get(kind)
    with _answer(session, url, {asked: value} if asked else {}) as answer:
        if answer.status_code == 304:
            return known
        if answer.status_code in _GONE:
            return None
        _refuse(url, answer)
        version = _version(answer)
        if version != known:
            with local.open("wb") as sink:
                for piece in answer.raw.stream(1 << 20, decode_content=False):
                    sink.write(piece)
        return version


def _answer(session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
    answer = session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS)
    if answer.status_code == 429 or answer.status_code >= 500:
        answer.close()
        raise Unsteady(f"{hide_secrets(url)} answered {answer.status_code}")
    return answer


def _refuse(url: str, answer: requests.Response) -> None:
    if answer.status_code != 200:
        raise PullFailed(f"{hide_secrets(url)} answered {answer.status_code} {answer.reason}")


def _version(answer: requests.Response) -> str:
    for kind, header in (("etag", "ETag"), ("modified", "Last-Modified")):
        if value := answer.headers.get(header):
            return f"{kind}:{value}"
    return ""


def _patiently(url: str, call: Callable[[], T]) -> T:
    """Call again, with growing waits, while the failure is one that may pass."""
    passing = (requests.ConnectionError, requests.Timeout, HTTPError, Unsteady)
    tries = Retrying(
        retry=retry_if_exception_type(passing),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential_jitter(multiplier=FIRST_WAIT_SECONDS, max=30),
        reraise=True,
    )
    try:
        return tries(call)
    except Unsteady as failed:
        raise PullFailed(str(failed)) from None
    except (requests.RequestException, HTTPError) as failed:
        # Both wrap the one line that a person can act on.
        inner = getattr(failed.args[0] if failed.args else None, "reason", failed)
        told = hide_secrets(str(inner).rpartition(": ")[2])
        raise PullFailed(f"{hide_secrets(url)} cannot be read: {told}") from failed
