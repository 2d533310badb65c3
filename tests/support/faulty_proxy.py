"""A proxy before an S3 server that spoils requests as a test says."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Literal

Fate = Literal["pass", "busy", "lost request", "lost answer", "half answer"]
"""busy: 503, and the server never hears of the request. lost request: the connection breaks and
the server never hears of it. lost answer: the server does the work, and the connection breaks
before its answer. half answer: it breaks in the middle of the answer."""

FAULTS: tuple[Fate, ...] = ("busy", "lost request", "lost answer", "half answer")
_GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
_ERROR = b"<Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>"
_BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s"
    % (len(_ERROR), _ERROR)
)
_LONGEST_HEAD_BYTES = 1 << 16


class Road:
    """The way to the server on `upstream_port`; `endpoint` is where clients go.

    fate: what becomes of each request, by its head.
    rewrite: changes a request's head.
    spoil: changes an answer, given its request's head.
    fates: how many requests met each fate.
    outage: set when the server was not there for a request.
    """

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self.endpoint = ""
        self.fate: Callable[[bytes], Fate] = smooth
        self.rewrite: Callable[[bytes], bytes] = lambda head: head
        self.spoil: Callable[[bytes, bytes], bytes] = lambda _head, answer: answer
        self.fates: Counter[Fate] = Counter()
        self.outage = Event()
        self._close: Callable[[], object] = lambda: None

    @contextmanager
    def open(self) -> Iterator[Road]:
        """Let clients through until the block ends."""
        opened = Event()
        thread = Thread(target=asyncio.run, args=(self._run(opened),))
        thread.start()
        opened.wait()
        try:
            yield self
        finally:
            self._close()
            thread.join()

    async def _run(self, opened: Event) -> None:
        closing, loop = asyncio.Event(), asyncio.get_running_loop()
        self._close = lambda: loop.call_soon_threadsafe(closing.set)
        async with await asyncio.start_server(
            self._serve, "127.0.0.1", 0, limit=_LONGEST_HEAD_BYTES
        ) as server:
            self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            opened.set()
            await closing.wait()

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            server, forth = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        except ConnectionError:
            self.outage.set()
            back.close()
            return
        try:
            while await self._carry(client, back, server, forth):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            # Between two requests the client has left; within one the server has.
            if await _gone(server):
                self.outage.set()
        except asyncio.CancelledError:
            pass  # the road is closed
        finally:
            for writer in (forth, back):
                writer.close()

    async def _carry(
        self,
        client: asyncio.StreamReader,
        back: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        forth: asyncio.StreamWriter,
    ) -> bool:
        """Carry one request and its answer; whether the connection goes on."""
        head = await client.readuntil(b"\r\n\r\n")
        if b"expect: 100-continue" in head.lower():
            back.write(_GO_ON)
        body = await _body(client, head)
        fate = self.fate(head)
        self.fates[fate] += 1
        if fate == "busy":
            back.write(_BUSY)
            await back.drain()
            return True
        if fate == "lost request":
            return False
        forth.write(self.rewrite(head) + body)
        answer = _GO_ON
        while answer.startswith(b"HTTP/1.1 100"):
            answer = await server.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HEAD"):
            answer += await _body(server, answer)
        if fate == "lost answer":
            return False
        answer = self.spoil(head, answer)
        back.write(answer[: len(answer) // 2] if fate == "half answer" else answer)
        await back.drain()
        return fate == "pass"


def smooth(_head: bytes) -> Fate:
    """Every request passes."""
    return "pass"


def bumpy(share: float, seed: int) -> Callable[[bytes], Fate]:
    """A share of all requests meets one of the faults."""
    dice = random.Random(seed)

    def fate(_head: bytes) -> Fate:
        return dice.choice(FAULTS) if dice.random() < share else "pass"

    return fate


async def _body(peer: asyncio.StreamReader, head: bytes) -> bytes:
    lowered = head.lower()
    if b"\r\ntransfer-encoding: chunked" in lowered:
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            size = await peer.readuntil(b"\r\n")
            body += size + await peer.readexactly(int(size.split(b";")[0], 16) + 2)
        return body
    found = re.search(rb"\r\ncontent-length: *(\d+)", lowered)
    return await peer.readexactly(int(found[1])) if found else b""


async def _gone(server: asyncio.StreamReader) -> bool:
    return server.at_eof() or isinstance(server.exception(), ConnectionError)
