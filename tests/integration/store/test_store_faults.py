"""A store on S3 while its server or the way to it fails."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from threading import Lock, Thread
from typing import Literal

import pytest

from perennial.store import open_store
from tests.support.s3_server import CephServer, S3Server

GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
_ERROR = b"<Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>"
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
    len(_ERROR),
    _ERROR,
)


class FaultyRoad:
    """A proxy that spoils the first `faults` PUTs.

    "lost answer": the server does the work, and the connection breaks before its answer arrives.
    "busy": 503, and the server never hears of it.
    """

    def __init__(self, upstream_port: int, fault: Literal["lost answer", "busy"], faults: int):
        self.spoilt = 0
        self._upstream_port = upstream_port
        self._fault = fault
        self._faults = faults
        self._lock = Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @contextmanager
    def open(self) -> Iterator[FaultyRoad]:
        thread = Thread(target=self._accept)
        thread.start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        upstream = socket.create_connection(("127.0.0.1", self._upstream_port))
        with closing(client), closing(upstream), suppress(OSError):
            while request := _head(client):
                if b"expect: 100-continue" in request.lower():
                    client.sendall(GO_ON)
                request += _body(client, request)
                spoil = self._is_spoilt(request)
                if spoil and self._fault == "busy":
                    client.sendall(BUSY)
                    return
                upstream.sendall(request)
                answer = GO_ON
                while answer.startswith(b"HTTP/1.1 100"):
                    answer = _head(upstream)
                if not request.startswith(b"HEAD"):
                    answer += _body(upstream, answer)
                if spoil:
                    return
                client.sendall(answer)

    def _is_spoilt(self, request: bytes) -> bool:
        with self._lock:
            spoil = request.startswith(b"PUT") and self.spoilt < self._faults
            self.spoilt += spoil
            return spoil


def _head(peer: socket.socket) -> bytes:
    """The head of one HTTP message, to its empty line; "" when the peer has closed."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = peer.recv(1)
        if not byte:
            return b""
        head += byte
    return head


def _body(peer: socket.socket, head: bytes) -> bytes:
    found = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
    wanted = int(found[1]) if found else 0
    body = b""
    while len(body) < wanted:
        body += peer.recv(wanted - len(body))
    return body


def test_I4_create_wins_when_the_answer_to_its_own_first_attempt_was_lost(
    s3_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyRoad(s3_server.port, "lost answer", faults=1).open() as road:
        monkeypatch.setenv("AWS_ENDPOINT_URL", road.endpoint)
        assert open_store(s3_url).create("ledger/0", b"event")
        assert road.spoilt == 1
    s3_server.use(monkeypatch)
    assert open_store(s3_url).read("ledger/0") == b"event"


def test_I4_create_wins_when_every_answer_was_lost(
    s3_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with FaultyRoad(s3_server.port, "lost answer", faults=1000).open() as road:
        monkeypatch.setenv("AWS_ENDPOINT_URL", road.endpoint)
        assert open_store(s3_url).create("ledger/0", b"event")
        assert road.spoilt > 1


def test_I4_create_loses_to_the_same_bytes_of_a_rival_when_its_answer_was_lost(
    s3_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_store(s3_url).create("ledger/0", b"event")
    with FaultyRoad(s3_server.port, "lost answer", faults=1).open() as road:
        monkeypatch.setenv("AWS_ENDPOINT_URL", road.endpoint)
        assert not open_store(s3_url).create("ledger/0", b"event")
        assert road.spoilt == 1


def test_writes_are_repeated_while_the_server_is_busy(
    s3_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyRoad(s3_server.port, "busy", faults=2).open() as road:
        monkeypatch.setenv("AWS_ENDPOINT_URL", road.endpoint)
        store = open_store(s3_url)
        store.write("a", b"x")
        assert road.spoilt == 2
        assert store.read("a") == b"x"


def test_create_says_so_when_it_cannot_know_the_outcome(
    s3_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with FaultyRoad(s3_server.port, "busy", faults=1000).open() as road:
        monkeypatch.setenv("AWS_ENDPOINT_URL", road.endpoint)
        with pytest.raises(OSError, match="Slow"):
            open_store(s3_url).create("a", b"x")
    s3_server.use(monkeypatch)
    assert not open_store(s3_url).exists("a")


def test_a_short_outage_of_the_server_is_waited_out(
    s3_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(s3_server, CephServer):
        pytest.skip("moto keeps its objects in the process that would be killed")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "10")
    store = open_store(s3_url)
    store.write("a", b"x")
    s3_server.kill_gateway()
    with ThreadPoolExecutor(3) as pool:
        answers = (
            pool.submit(store.read, "a"),
            pool.submit(store.list),
            pool.submit(store.create, "b", b"y"),
        )
        s3_server.start_gateway()
        assert answers[0].result() == b"x"
        assert {info.key for info in answers[1].result()} <= {"a", "b"}
        assert answers[2].result() is True


def test_a_long_outage_is_a_connection_error(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = open_store(s3_url)
    for operation in (store.read, store.exists, store.info, store.list, store.open):
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9"):
            operation("a")
    with pytest.raises(ConnectionError):
        store.create("a", b"x")
