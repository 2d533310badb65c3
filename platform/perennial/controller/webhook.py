"""Webhook that wakes `watch` early; the inbox stays the source of truth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

_LONGEST_BODY_BYTES = 1 << 20
SHORTEST_SECONDS = 1.0
"""Time between the ends of two pauses, at least, however many events are posted."""


class Wakeup:
    """A pause that ends early when an S3 event is posted to `port`.

    A request says only when to look: its body is discarded unread, because it is not authenticated.

    Events that come close together end one pause: a producer may write thousands of objects, and
    each look lists the inbox. None is lost: one that comes after a pause has ended ends the next.

    Args:
        port: TCP port to listen on, 0 for any free one; None listens on none.
        log: called with a line that names the port.
    """

    def __init__(self, port: int | None, log: Callable[[str], None]) -> None:
        self._woken = threading.Event()
        self._not_before = 0.0
        self._server: ThreadingHTTPServer | None = None
        if port is not None:
            self._server = ThreadingHTTPServer(("", port), _handler(self._woken))
            self._server.daemon_threads = True
            log(f"S3 events may be posted to port {self._server.server_port}")

    @property
    def port(self) -> int | None:
        """Return the port that is listened on."""
        return None if self._server is None else self._server.server_port

    def __enter__(self) -> Wakeup:
        if self._server is not None:
            threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def wait(self, seconds: float) -> bool:
        """Sleep for some seconds; return True when a request ended the pause."""
        woken = self._woken.wait(seconds)
        if woken:
            time.sleep(max(0.0, self._not_before - time.monotonic()))
        # Before the look, which sees what was there when this was cleared.
        self._woken.clear()
        self._not_before = time.monotonic() + SHORTEST_SECONDS
        return woken


def _handler(woken: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Hint(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "0")
            if not length.isdecimal() or int(length) > _LONGEST_BODY_BYTES:
                self.send_error(413)
                return
            self.rfile.read(int(length))
            woken.set()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing: port scans would fill the log."""

    return Hint
