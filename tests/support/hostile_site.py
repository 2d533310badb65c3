"""A web server whose every answer is a list of bytes and waits, written by hand."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Drip:
    """Sends a byte again and again until the client has had enough."""

    byte: bytes = b"x"


Part = bytes | Drip | threading.Event


def body(data: bytes, *headers: str, status: str = "200 OK") -> list[Part]:
    """Return a whole answer with its length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", *headers, "", ""]
    return ["\r\n".join(lines).encode() + data]


def head(*headers: str, status: str = "200 OK", version: str = "1.1") -> bytes:
    """Return the first part of an answer, to be followed by whatever its body is."""
    return "\r\n".join([f"HTTP/{version} {status}", *headers, "", ""]).encode()


def redirect(target: str, status: str = "302 Found") -> list[Part]:
    """Return a redirect."""
    return body(b"", f"Location: {target}", status=status)


@dataclass
class HostileSite:
    """Answers by path; `asked` counts the requests, `headers` keeps the last of each path."""

    port: int = 0
    answers: dict[str, list[Part]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    headers: dict[str, str] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Return the address of the server, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def answer(self, peer: socket.socket) -> None:
        """Read one request and send what its path has."""
        request = b""
        while b"\r\n\r\n" not in request:
            piece = peer.recv(1 << 16)
            if not piece:
                return
            request += piece
        text = request.decode("latin-1")
        path = text.split(" ", 2)[1]
        self.headers[path] = text
        self.asked[path] += 1
        for part in self.answers.get(path, body(b"", status="404 Not Found")):
            if isinstance(part, threading.Event):
                while not part.wait(0.02) and not self.closing.is_set():
                    pass
            elif isinstance(part, Drip):
                while not self.closing.wait(0.02):
                    peer.sendall(part.byte)
            else:
                peer.sendall(part)


@contextmanager
def serve_hostile_site(tls: ssl.SSLContext | None = None) -> Iterator[HostileSite]:
    """Run the server in threads; every connection ends with its first answer.

    Args:
        tls: encrypts the connections; None for plain ones.
    """
    site = HostileSite()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):  # the client went away
                if tls is None:
                    site.answer(self.request)
                    return
                with tls.wrap_socket(
                    self.request, server_side=True, do_handshake_on_connect=False
                ) as peer:
                    peer.do_handshake()
                    site.answer(peer)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        site.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield site
        site.closing.set()
        server.shutdown()
        thread.join()


def make_certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Write a certificate of 127.0.0.1; return its file and the context of its server."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return file, context
