"""A stand-in for a mail server: as much of SMTP as a message by STARTTLS and a password needs."""

from __future__ import annotations

import base64
import socketserver
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from threading import Thread


class MailServer(socketserver.ThreadingTCPServer):
    """Listens on a port of this machine.

    messages: what it took, in order.
    logins: user and password of every login, in order.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None, refuses: str) -> None:
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.context = context
        self.refuses = refuses
        self.messages: list[EmailMessage] = []
        self.logins: list[tuple[str, str]] = []

    @property
    def port(self) -> int:
        """The port."""
        return int(self.server_address[1])


class _Conversation(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        self._say("220 stand-in ESMTP")
        while line := self.rfile.readline():
            word, _, rest = line.decode().strip().partition(" ")
            if not self._answer(word.upper(), rest):
                return

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def _answer(self, word: str, rest: str) -> bool:
        if word == self.server.refuses:
            self._say(f"550 this server takes no {word}")
        elif word == "EHLO":
            encrypted = isinstance(self.connection, ssl.SSLSocket)
            self._say("250-stand-in")
            self._say("250-AUTH PLAIN" if encrypted else "250-STARTTLS")
            self._say("250 8BITMIME")
        elif word == "STARTTLS" and self.server.context is not None:
            self._say("220 go ahead")
            self.connection = self.server.context.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
        elif word == "AUTH":
            _, user, password = base64.b64decode(rest.partition(" ")[2]).decode().split("\0")
            self.server.logins.append((user, password))
            self._say("235 welcome")
        elif word == "DATA":
            self._say("354 go on")
            lines = iter(self.rfile.readline, b".\r\n")
            self.server.messages.append(message_from_bytes(b"".join(lines), policy=default))
            self._say("250 taken")
        elif word == "QUIT":
            self._say("221 bye")
            return False
        else:
            self._say("250 ok")
        return True

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())
        self.wfile.flush()


@contextmanager
def mail_server(certificate: Path | None = None, refuses: str = "") -> Iterator[MailServer]:
    """Serve on this machine.

    Args:
        certificate: a file with a key and its certificate, for STARTTLS.
        refuses: a command that is answered by an error.
    """
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    with MailServer(context, refuses) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def make_certificate(folder: Path) -> Path:
    """A key and its certificate for `localhost`, in one file."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*words.split(), *names, *files], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    return both
