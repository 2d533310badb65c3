"""Requests to the servers of feeds: checked addresses, bounded time and bytes, whole answers.

The address that a host's name leads to is checked where the connection is opened, and that very
address is connected to: a name that is looked up a second time may lead elsewhere (DNS rebinding).
"""

from __future__ import annotations

import http.client
import netrc
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import default_user_agent, get_environ_proxies, select_proxy
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential_jitter,
)
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError, ProtocolError

from perennial.errors import PullFailed, PullRefused, Unsteady
from perennial.sources.address import AddressRules, hide_addresses, port_of, show_address
from perennial.sources.base import Pull, one_line
from perennial.sources.breaker import TimeLimit

T = TypeVar("T")

ATTEMPTS = 4
FIRST_WAIT_SECONDS = 1.0
MOST_HOPS = 5
PIECE_BYTES = 1 << 16
_CONNECT_SECONDS = 10.0
_PIECE_SECONDS = 60.0
_REDIRECTS = (301, 302, 303, 307, 308)


class FeedClient:
    """Sends the requests of one pull; used by one thread.

    Args:
        pull: the pull, for its budgets.
    """

    def __init__(self, pull: Pull) -> None:
        self._pull = pull
        self._rules = AddressRules.of(pull.spec)
        self._lock = Lock()
        self._sockets: dict[tuple[str, int], socket.socket] = {}
        self._limit = TimeLimit(0.0)
        bundles = (os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))
        self._verify: str | bool = next(filter(None, bundles), True)
        self._adapter = _Adapter(self._connect)

    def __enter__(self) -> FeedClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._adapter.close()
        self._shut()

    def get(
        self,
        url: str,
        headers: Mapping[str, str],
        receive: Callable[[requests.Response], T],
    ) -> T:
        """Send a GET request until it succeeds, and receive its answer.

        Args:
            url: the address.
            headers: further headers.
            receive: reads the answer, of whatever status; called again for another attempt. The
                answer's `url` is the address after redirects.

        Returns:
            What `receive` returns.

        Raises:
            PullFailed: no attempt succeeded, or a rule or a budget forbids it.
        """
        shown = show_address(url, self._pull.secrets)

        def attempt() -> T:
            with self._follow(url, headers) as answer:
                if answer.status_code == 429 or answer.status_code >= 500:
                    raise Unsteady(f"answered {answer.status_code}")
                return receive(answer)

        try:
            with self._pull.breaker.limit(self._pull.seconds_for_file(), self._shut) as limit:
                self._limit = limit
                return self._retry(attempt)
        except PullFailed as failed:
            reason = str(failed)
            raise type(failed)(reason if shown in reason else f"{shown} {reason}") from None

    def _retry(self, attempt: Callable[[], T]) -> T:
        """Call a function again, with growing waits, while it fails in a way that may pass."""
        tries = Retrying(
            retry=retry_if_exception_type(
                (requests.ConnectionError, requests.Timeout, HTTPError, Unsteady)
            ),
            stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(self._limit.seconds_left),
            wait=wait_exponential_jitter(
                multiplier=FIRST_WAIT_SECONDS, max=30, jitter=FIRST_WAIT_SECONDS
            ),
            reraise=True,
        )
        try:
            return tries(partial(self._in_time, attempt))
        except Unsteady as failed:
            raise PullFailed(str(failed)) from None
        except (requests.RequestException, HTTPError) as failed:
            # Both wrap the one line that says what the user can do something about.
            inner = getattr(failed.args[0] if failed.args else None, "reason", failed)
            reason = hide_addresses(one_line(str(inner)).rpartition(": ")[2])
            raise PullFailed(f"cannot be read: {reason}") from failed

    def _in_time(self, attempt: Callable[[], T]) -> T:
        try:
            result = attempt()
        except (requests.RequestException, HTTPError, OSError, PullFailed, Unsteady):
            self._shut()
            self._check_time()
            raise
        # A connection that was shut at the deadline looks like an answer that ends.
        self._check_time()
        return result

    def _check_time(self) -> None:
        if self._pull.breaker.tripped:
            raise PullFailed("the process is ending")
        if self._limit.late:
            raise self._pull.late()

    @contextmanager
    def _follow(self, url: str, headers: Mapping[str, str]) -> Iterator[requests.Response]:
        """Open the answer to a request, after at most `MOST_HOPS` redirects."""
        target_url = url
        for hop in range(MOST_HOPS + 1):
            try:
                answer = self._send(self._rules.check_url(target_url), headers)
            except PullRefused as refused:
                if hop == 0:
                    raise
                raise PullRefused(f"is redirected, and {refused}") from None
            with answer:
                target = answer.headers.get("Location", "")
                if answer.status_code not in _REDIRECTS or not target:
                    yield answer
                    return
            # Header fields are read as Latin-1; servers send UTF-8.
            target = target.encode("latin-1", "replace").decode("utf-8", "replace")
            try:
                target_url = urljoin(answer.url, target)
            except ValueError:
                raise PullFailed("is redirected to something that is no address") from None
        raise PullFailed(f"is redirected more than {MOST_HOPS} times")

    def _send(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        self._check_time()
        # Some servers declare .gz files as an encoding, and requests would then decompress them.
        own = {"User-Agent": default_user_agent(), "Accept": "*/*", "Accept-Encoding": "identity"}
        login = self._find_login(url)
        request = requests.Request("GET", url, headers={**own, **headers}, auth=login).prepare()
        # Not by a Session: it would take proxies and passwords from the environment, and read the
        # body of a redirect, of any length, into memory.
        answer: requests.Response = self._adapter.send(
            request,
            stream=True,
            timeout=(_CONNECT_SECONDS, min(_PIECE_SECONDS, self._limit.seconds_left + 1)),
            verify=self._verify,
            proxies=self._find_proxies(url),
        )
        return answer

    def _find_proxies(self, url: str) -> dict[str, str]:
        proxies = get_environ_proxies(url)
        if self._pull.spec.proxy or select_proxy(url, proxies) is None:
            return proxies if self._pull.spec.proxy else {}
        raise PullRefused(
            "would be read through the proxy that the environment names, which hides the "
            "addresses that it connects to; set `proxy: true`, or name the host in NO_PROXY"
        )

    def _find_login(self, url: str) -> tuple[str, str] | None:
        """Return user and password of the address's own host in ~/.netrc."""
        parts = urlsplit(url)
        index = self._rules.index
        file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
        try:
            machines = netrc.netrc(file).hosts
        except (OSError, ValueError, netrc.NetrcParseError):
            return None
        entry = machines.get(parts.hostname or "")
        if (parts.hostname, port_of(parts)) == (index.hostname, port_of(index)):
            entry = entry or machines.get("default")
        return (entry[0] or entry[1], entry[2] or "") if entry else None

    def _connect(self, connection: HTTPConnection) -> socket.socket:
        """Open a connection to an address that the source may reach."""
        name, port = connection._dns_host.strip("[]"), connection.port or 0
        places = self._look_up(connection, name, port)
        problem: OSError | None = None
        for family, kind, protocol, address in places:
            peer = socket.socket(family, kind, protocol)
            try:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer.settimeout(min(_CONNECT_SECONDS, self._limit.seconds_left) or 0.001)
                peer.connect(address)
                self._keep(name, port, peer)
            except OSError as failed:
                peer.close()
                problem = failed
                continue
            return peer
        raise NewConnectionError(connection, f"no connection: {problem}")

    def _look_up(self, connection: HTTPConnection, name: str, port: int) -> list[Any]:
        """Return (family, type, protocol, address) of what may be connected to."""
        try:
            listed = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as failed:
            problem = failed if isinstance(failed, socket.gaierror) else socket.gaierror(failed)
            raise NameResolutionError(name, connection, problem) from failed
        if connection.proxy is not None:
            return [(*place[:3], place[4]) for place in listed]
        secure = isinstance(connection, HTTPSConnection)
        self._rules.check_place("https" if secure else "http", name, port)
        permitted, refusal = [], PullRefused("leads to no address")
        for family, kind, protocol, _, address in listed:
            try:
                self._rules.check_peer(name, port, ip_address(str(address[0])))
            except PullRefused as refused:
                refusal = refused
                continue
            permitted.append((family, kind, protocol, address))
        if not permitted:
            raise refusal
        return permitted

    def _keep(self, name: str, port: int, peer: socket.socket) -> None:
        """Keep a second handle of a connection, by which another thread can shut it.

        The first one is swallowed by TLS.
        """
        with self._lock:
            before = self._sockets.pop((name, port), None)
            self._sockets[name, port] = peer.dup()
        if before is not None:
            before.close()
        if self._limit.late or self._pull.breaker.tripped:
            self._shut()

    def _shut(self) -> None:
        """Shut all connections, so that a thread that reads from one sees its end."""
        with self._lock:
            sockets = list(self._sockets.values())
            self._sockets.clear()
        for peer in sockets:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()


class _Adapter(HTTPAdapter):  # type: ignore[misc]
    """Opens connections by a function of ours.

    Args:
        connect: returns the connected socket of a connection.
    """

    def __init__(self, connect: Callable[[HTTPConnection], socket.socket]) -> None:
        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return connect(self)

        class Secure(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return connect(self)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        self._pools = {"http": PlainPool, "https": SecurePool}
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = self._pools
        return manager


def announced_bytes(answer: requests.Response) -> int | None:
    """Return the length that a server announces of a body; None for none.

    Raises:
        ProtocolError: the length is no number.
    """
    text = answer.headers.get("Content-Length")
    if text is None or is_chunked(answer):
        return None
    if not text.isdecimal() or not text.isascii():
        raise ProtocolError(f"Content-Length is {text[:40]!r}")
    return int(text)


def is_chunked(answer: requests.Response) -> bool:
    """Return whether the body comes in chunks, of which the last one is marked."""
    return "chunked" in answer.headers.get("Transfer-Encoding", "").lower()


def read_pieces(answer: requests.Response, *, decode: bool) -> Iterator[bytes]:
    """Yield a body in pieces of at most `PIECE_BYTES`.

    Args:
        answer: the open answer.
        decode: decompress it where the server compressed it for the transport.

    Raises:
        HTTPError: it ends before its announced length or its last chunk.
    """
    raw = answer.raw
    if is_chunked(answer):
        _refuse_negative_chunks(raw)
    try:
        yield from raw.stream(PIECE_BYTES, decode_content=decode)
    except (http.client.HTTPException, OSError, ValueError) as failed:
        raise ProtocolError(f"the body cannot be read: {failed}") from failed


def _refuse_negative_chunks(raw: Any) -> None:
    """Make the parser of chunks refuse a size below 0, which it takes for "all there is"."""
    parse = raw._update_chunk_length

    def parse_size() -> None:
        parse()
        if (raw.chunk_left or 0) < 0:
            raise ProtocolError("a chunk of negative size")

    raw._update_chunk_length = parse_size
